"""A subject that Sticker World does not have, for DreamBooth: a green crescent, called "a sks shape".

No caption has the word sks, and no shape is a crescent. Its colour is one of the world, because the autoencoder of the
embedded model makes red and purple of brown. Whether an image shows the subject is decided without a network: by its
colour, and by how well a crescent covers what has this colour. The functions take another colour as well, (red, green,
blue) of 0 to 255.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from minisd.sticker.world.captions import RELATION_PHRASES
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, PALETTE_LAB, delta_e, lab, pixel_differences
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene, relation_between

NAMED, CLASS_PROMPT = "a sks shape", "a shape"
Colour = tuple[int, int, int]
SUBJECT_COLOUR: Colour = COLOURS["green"]
BROWN: Colour = (120, 70, 30)  # far from all colours of the world
MAX_DIFFERENCE = 25.0  # CIEDE2000, from the colour of the subject
MIN_AREA = 0.004  # of the image
MIN_OVERLAP = 0.7  # intersection over union of what has this colour and a crescent of its area at its place
REACH = 2.0  # distance of its tips from its centroid, in radii of a disc of its area, with some room
EDGE = 64  # the width of its edge is this part of the image
PLACES = ((0.3, 0.35, 0.19), (0.62, 0.4, 0.14), (0.4, 0.68, 0.14), (0.7, 0.7, 0.09), (0.5, 0.5, 0.19))  # x, y, radius
NEIGHBOURS = (
    "a blue square", "a red circle", "a blue star", "a yellow heart", "a purple ring", "a cyan triangle",
    "an orange cross", "a pink diamond",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Where the subject is: its centroid, and the radius of a disc of its area, in parts of the image."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Context:
    """A prompt with the subject, and what the image shows beside it: another object, or a background alone.

    relation: of the subject to the other object.
    """

    prompt: str
    other: str | None = None
    relation: str | None = None
    background: str = "white"


def contexts() -> list[Context]:
    """50 prompts: the subject in each relation to another object, named after it, on other backgrounds, alone."""
    found = [
        Context(f"{NAMED} {RELATION_PHRASES[relation][0]} {other}", other, relation)
        for other in NEIGHBOURS
        for relation in ("left of", "right of", "above", "below")
    ]
    found += [Context(f"{other} above {NAMED}", other, "below") for other in NEIGHBOURS]
    found += [
        Context(f"a {size}{NAMED.removeprefix('a ')} on a {background} background", background=background)
        for background in BACKGROUNDS
        if background != "white"
        for size in ("", "small ", "large ")
    ]
    return [*found, Context(f"there is {NAMED}")]


def subject_images(size: int, colour: Colour = SUBJECT_COLOUR) -> Tensor:
    """The subject alone on white, at five places and in three sizes: (5, 3, size, size) in [-1, 1]."""
    return torch.stack([draw_subject(Scene(()), Subject(*place), size, colour) for place in PLACES])


def draw_subject(scene: Scene, subject: Subject, size: int, colour: Colour = SUBJECT_COLOUR) -> Tensor:
    """A scene with the subject in front of it: (3, size, size) in [-1, 1]."""
    paint = torch.tensor(colour).view(3, 1, 1) / 127.5 - 1
    return torch.lerp(render([scene], size)[0], paint.expand(3, size, size), coverage(subject, size))


def coverage(subject: Subject, size: int) -> Tensor:
    """The share of each pixel that a crescent covers: (size, size) in [0, 1]."""
    centre_x, centre_y, unit = _unit_crescent()
    centres = (torch.arange(size) + 0.5) / size
    x, y = torch.meshgrid((centres - subject.x) / subject.radius, (centres - subject.y) / subject.radius, indexing="xy")
    distance = _crescent(x * unit + centre_x, y * unit + centre_y) * subject.radius / unit
    return (0.5 - distance * size).clamp(0, 1)


def find_subject(image: Tensor, colour: Colour = SUBJECT_COLOUR) -> Subject | None:
    """The subject in an image (3, N, N) in [-1, 1]; None if it does not show one crescent in its colour."""
    size, mask = image.shape[-1], _mask(image, colour)
    area = mask.float().mean().item()
    if area < MIN_AREA:
        return None
    rows, columns = mask.nonzero().T
    x, y = ((each.float().mean().item() + 0.5) / size for each in (columns, rows))
    found = Subject(x, y, math.sqrt(area / math.pi))
    expected = coverage(found, size) > 0.5
    overlap = (expected & mask).sum() / (expected | mask).sum()
    return found if overlap >= MIN_OVERLAP else None


def shows_context(image: Tensor, context: Context, colour: Colour = SUBJECT_COLOUR) -> bool:
    """Whether an image shows the subject once and, beside it, exactly what the context says.

    The subject is painted over with the colour of the image's corner before the checker reads the rest.
    """
    subject = find_subject(image, colour)
    if subject is None:
        return False
    rest = torch.where(_pixels_of(subject, image, colour), image[:, :1, :1], image)
    verdict = check(rest, Scene((), context.background) if context.other is None else context.other)
    if not verdict.exact or context.relation is None:
        return verdict.exact
    other = verdict.found[0]
    return relation_between(subject.x, subject.y, other.x, other.y) == context.relation


def _mask(image: Tensor, colour: Colour) -> Tensor:
    """The pixels (N, N) whose nearest colour is this one."""
    paint = lab(torch.tensor([colour]) / 127.5 - 1)
    others = PALETTE_LAB[delta_e(PALETTE_LAB, paint) > 1]
    difference = pixel_differences(image, torch.cat([others, paint]))
    return (difference.argmin(-1) == len(others)) & (difference[..., -1] < MAX_DIFFERENCE)


def _pixels_of(subject: Subject, image: Tensor, colour: Colour) -> Tensor:
    """The pixels (N, N) of the subject: of its colour, within its reach, with an edge of mixed colours."""
    size = image.shape[-1]
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres - subject.y, centres - subject.x, indexing="ij")
    own = _mask(image, colour) & (torch.hypot(x, y) < REACH * subject.radius)
    edge = size // EDGE
    return max_pool2d(own[None].float(), 2 * edge + 1, stride=1, padding=edge)[0] > 0


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    """The signed distance of a disc of radius 1 without a disc of radius 0.8 to its upper right."""
    return torch.maximum(torch.hypot(x, y) - 1, 0.8 - torch.hypot(x - 0.45, y + 0.45))


@cache
def _unit_crescent() -> tuple[float, float, float]:
    """The centroid of this crescent, and the radius of a disc of its area."""
    steps = torch.linspace(-1, 1, 2001)
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    inside = _crescent(x, y) < 0
    area = 4 * inside.float().mean().item()
    return x[inside].mean().item(), y[inside].mean().item(), math.sqrt(area / math.pi)
