"""From scenes to pictures: anti-aliased, batched, on any device."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.sticker.world.palette import COLOURS, rgb
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.shapes import THINGS, sdf
from minisd.sticker.world.styles import DROP, STYLES, bordered, painted, shaded

_CHUNK = 32  # scenes at a time: what is drawn at once stays in the processor's cache


class Layers(NamedTuple):
    """How much of each pixel each thing paints, each (B, K, size, size) in [0, 1], whatever is in front of it.

    Flat things and outlines have no border and no shadow.
    """

    paint: Tensor
    border: Tensor  # a sticker's white border, with what is inside
    shadow: Tensor


def layers(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Layers:
    """All that is drawn of each thing.

    Coverage is 0.5 - distance to the edge in pixels, clamped: exact for straight edges along the grid.
    """
    most = max((len(scene.things) for scene in scenes), default=0)
    drawn = Layers(*(torch.zeros(len(scenes), most, size, size, device=device) for _ in Layers._fields))
    for start in range(0, len(scenes), _CHUNK):
        _draw(scenes[start : start + _CHUNK], Layers(*(each[start : start + _CHUNK] for each in drawn)))
    return drawn


def _draw(scenes: Sequence[Scene], drawn: Layers) -> None:
    """Fill in the layers, one call of the distance function for all things of a shape and style."""
    groups = defaultdict(list)
    for b, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            groups[thing.shape, thing.style].append((b, k, thing.x, thing.y, thing.radius))
    size, device = drawn.paint.shape[-1], drawn.paint.device
    centres = (torch.arange(size, device=device) + 0.5) / size  # of the pixels
    for (shape, style), rows in groups.items():
        numbers = torch.tensor(rows, dtype=torch.float32, device=device)
        b, k = numbers[:, :2].long().T
        x, y, radius = numbers[:, 2:].T[:, :, None, None]

        def distance(moved: float, shape: str = shape, x: Tensor = x, y: Tensor = y, radius: Tensor = radius) -> Tensor:
            across = (centres - moved - x) / radius
            down = (centres[:, None] - moved - y) / radius
            return sdf(shape, *torch.broadcast_tensors(across, down)) * (radius * size)  # in pixels

        drawn.paint[b, k] = painted(distance(0), style, size)
        if style == "sticker":
            drawn.border[b, k] = bordered(distance(0), size)
            drawn.shadow[b, k] = shaded(distance(DROP), size)


def masks(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """How much of each pixel shows each thing: (B, K, size, size) in [0, 1], K things in the fullest scene.

    What a thing in front hides is not the hidden one's; a border belongs to its sticker, a shadow to nobody.
    """
    paint, border, _ = layers(scenes, size, device)
    seen = torch.maximum(paint, border)
    for k in range(seen.shape[1] - 1):
        seen[:, k] *= (1 - seen[:, k + 1 :]).prod(1)
    return seen


def render(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes.  -> float32 (B, 3, size, size), sRGB in [-1, 1].

    Raises InputError without scenes, for a size below 8 pixels, and for what is not of this world.
    """
    if not scenes or size < 8:
        raise InputError(f"render got {len(scenes)} scenes at {size} pixels; give at least one scene and 8 pixels")
    for thing in (thing for scene in scenes for thing in scene.things):
        for name, known in (("shape", THINGS), ("colour", COLOURS), ("style", STYLES)):
            if getattr(thing, name) not in known:
                raise InputError(f"there is no {name} {getattr(thing, name)!r}; use one of {', '.join(known)}")
    pictures = rgb([scene.background for scene in scenes], device)[:, :, None, None].repeat(1, 1, size, size)
    white, black = torch.ones_like(pictures), -torch.ones_like(pictures)
    drawn = layers(scenes, size, device)
    for k, (paint, border, shadow) in enumerate(zip(*(each.unbind(1) for each in drawn), strict=True)):
        if any(thing.style == "sticker" for scene in scenes for thing in scene.things[k : k + 1]):
            pictures = torch.lerp(pictures, black, shadow[:, None])
            pictures = torch.lerp(pictures, white, border[:, None])
        # a scene with fewer things has an empty mask here, whatever the colour
        names = [scene.things[k].colour if k < len(scene.things) else scene.background for scene in scenes]
        pictures = torch.lerp(pictures, rgb(names, device)[:, :, None, None], paint[:, None])
    return pictures


def depth(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """How near everything is, (B, 1, size, size): the background 0, things 0.5 at the edge to 1 in their middle.

    A thing that another one hides in part is at half of that, so that all of it is behind the other.
    """
    near = torch.zeros(len(scenes), 1, size, size, device=device)
    centres = (torch.arange(size, device=device) + 0.5) / size
    paint, border, _ = layers(scenes, size, device)
    for b, cover in enumerate(torch.maximum(paint, border)):
        things = scenes[b].things
        for k, (thing, own) in enumerate(zip(things, cover, strict=False)):
            across, down = torch.broadcast_tensors(
                (centres - thing.x) / thing.radius, (centres[:, None] - thing.y) / thing.radius
            )
            height = (-2 * sdf(thing.shape, across, down)).clamp(0, 1)
            behind = scenes[b].overlapping and k < len(things) - 1
            near[b, 0] = near[b, 0] * (1 - own) + own * (0.5 + 0.5 * height) * (0.5 if behind else 1)
    return near
