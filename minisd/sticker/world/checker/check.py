"""Check whether an image shows what a scene or a caption describes, from the objects that `detect_objects` finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.errors import InputError
from minisd.sticker.world.captions import Expectation, ObjectExpectation, expectation_of, parse_caption
from minisd.sticker.world.checker.recognise import Detection
from minisd.sticker.world.checker.segment import detect_objects
from minisd.sticker.world.scene import Scene, relation_between

ATTRIBUTES = ("shape", "colour", "size", "style", "position")
MIN_HIDDEN = 0.05  # share of an object's area; an object hidden less is not "behind" the other


@dataclass(frozen=True)
class Verdict:
    """The detected objects, and which parts of the expectation are met; a part without an expectation is met."""

    found: tuple[Detection, ...]
    background_found: str | None
    object: bool  # every expected object is there, with its own shape and colour
    shape: bool
    colour: bool
    size: bool
    style: bool
    position: bool
    relation: bool  # left of, right of, beside, above, below, in front of or behind
    count: bool  # as many objects as expected, all of them with a known shape and colour
    background: bool

    @property
    def exact(self) -> bool:
        """Whether everything is met, and nothing else is in the image."""
        parts = (self.object, self.size, self.style, self.position, self.relation, self.count, self.background)
        return all(parts)


def check(image: Tensor | Image.Image, expected: Scene | Expectation | str) -> Verdict:
    """Compare an image, (3, N, N) in [-1, 1] or PIL, with a scene, an expectation or a caption.

    Images above 64 x 64 pixels are reduced to that size first, see `detect_objects`.
    Raises InputError for an image of another shape or below 32 pixels, for NaN, and for a caption outside the grammar.
    """
    if isinstance(expected, str):
        expected = parse_caption(expected)
    elif isinstance(expected, Scene):
        expected = expectation_of(expected)
    if isinstance(image, Image.Image):
        image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2] or image.shape[1] < 32:
        raise InputError(f"check got an image of shape {tuple(image.shape)}; give one (3, N, N) with N >= 32.")
    if not torch.isfinite(image).all():
        raise InputError("check got an image with NaN or infinity; find the step at which the sampler diverged.")
    found, background = detect_objects(image)
    return judge(tuple(found), background, expected)


def judge(found: tuple[Detection, ...], background: str | None, expected: Expectation) -> Verdict:
    """The verdict under the matching of expected to detected objects that meets the most."""
    known = all(obj.shape is not None and obj.colour is not None for obj in found)
    count = known and len(found) == len(expected.objects)
    background_met = expected.background in (None, background)
    verdicts = (
        Verdict(found, background, **_compare(match, expected), count=count, background=background_met)
        for match in _matchings(found, expected.objects)
    )
    return max(
        verdicts, key=lambda v: (v.exact, v.object + sum(getattr(v, name) for name in (*ATTRIBUTES, "relation")))
    )


def _matchings(
    found: tuple[Detection, ...], objects: tuple[ObjectExpectation, ...]
) -> Iterable[tuple[Detection | None, ...]]:
    """All matchings of detected to expected objects; for more than two equal ones only the most similar matching."""
    padded = (*found, *[None] * (len(objects) - len(found)))
    if len(objects) <= 2 or len(set(objects)) > 1:
        return permutations(padded, len(objects))
    names = [name for name in ("shape", "colour", "size", "style") if getattr(objects[0], name) is not None]

    def similarity(each: Detection | None) -> int:
        return -1 if each is None else sum(getattr(each, name) == getattr(objects[0], name) for name in names)

    return [tuple(sorted(padded, key=similarity, reverse=True)[: len(objects)])]


def _compare(match: tuple[Detection | None, ...], expected: Expectation) -> dict[str, bool]:
    """Which parts of an expectation one matching meets."""
    pairs = list(zip(match, expected.objects, strict=True))
    met = {
        name: all(obj is not None and getattr(wanted, name) in (None, getattr(obj, name)) for obj, wanted in pairs)
        for name in ATTRIBUTES
    }
    related = expected.relation is None
    if len(match) == 2 and match[0] is not None and match[1] is not None:
        related = related or expected.relation in _relations(match[0], match[1])
    return met | {"object": met["shape"] and met["colour"], "relation": related}


def _relations(first: Detection, second: Detection) -> tuple[str, ...]:
    """The relations of two objects: of overlapping ones only their order counts, and no order below MIN_HIDDEN."""
    hidden = max(first.hidden, second.hidden)
    if hidden > 0:
        if hidden < MIN_HIDDEN:
            return ()
        return ("behind" if first.hidden == hidden else "in front of",)
    relation = relation_between(first.x, first.y, second.x, second.y)
    return (relation, "beside") if relation in ("left of", "right of") else (relation,)
