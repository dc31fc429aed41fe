"""Does a picture show what was asked?  An exact answer, from what `segment.find` sees in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.errors import InputError
from minisd.sticker.world.captions import Expectation, ThingExpectation, expectation, expectation_of
from minisd.sticker.world.checker.recognise import Found
from minisd.sticker.world.checker.segment import find
from minisd.sticker.world.scene import Scene, position, relation

LEAST_HIDDEN = 0.05  # share of a thing, from which on it is behind the other


@dataclass(frozen=True)
class Verdict:
    """What was found, and what of the request is right; what was left open is right."""

    found: tuple[Found, ...]
    background_found: str | None
    object: bool  # every thing asked for is there, with its own shape and colour
    shape: bool
    colour: bool
    size: bool
    style: bool
    position: bool
    relation: bool  # where one thing is to the other, or which of the two is in front
    count: bool  # as many objects as asked for, each one of ours
    background: bool

    @property
    def exact(self) -> bool:
        """All of it is right, and nothing else is in the picture."""
        parts = (self.object, self.size, self.style, self.position, self.relation, self.count, self.background)
        return all(parts)


def check(image: Tensor | Image.Image, wanted: Scene | Expectation | str) -> Verdict:
    """Compare a picture, (3, N, N) in [-1, 1] or PIL, with a scene, an expectation or a caption.

    Raises InputError for a picture of another shape or below 32 pixels, for NaN, and for a caption outside
    of our own grammar.
    """
    if isinstance(wanted, str):
        wanted = expectation(wanted)
    elif isinstance(wanted, Scene):
        wanted = expectation_of(wanted)
    if isinstance(image, Image.Image):
        image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2] or image.shape[1] < 32:
        raise InputError(f"check got a picture of shape {tuple(image.shape)}; give one (3, N, N) with N >= 32")
    if not torch.isfinite(image).all():
        raise InputError("check got a picture with NaN or infinity; look for where the sampler diverged")
    found, background = find(image)
    return judge(tuple(found), background, wanted)


def judge(found: tuple[Found, ...], background: str | None, wanted: Expectation) -> Verdict:
    """The verdict under the matching of things asked for to objects found that gets the most right."""
    count = len(found) == len(wanted.things) and all(f.shape is not None and f.colour is not None for f in found)
    ground = wanted.background in (None, background)
    verdicts = (
        Verdict(found, background, *_compare(match, wanted), count=count, background=ground)
        for match in _matchings(found, wanted.things)
    )
    return max(verdicts, key=_right)


def _matchings(found: tuple[Found, ...], things: tuple[ThingExpectation, ...]) -> Iterable[tuple[Found | None, ...]]:
    """The ways to match objects to things; of more than two alike any will do: the likest objects, in one order."""
    padded = (*found, *[None] * (len(things) - len(found)))
    if len(things) <= 2 or len(set(things)) > 1:
        return permutations(padded, len(things))
    asked = [name for name in ("shape", "colour", "size", "style") if getattr(things[0], name) is not None]

    def likeness(each: Found | None) -> int:
        return -1 if each is None else sum(getattr(each, name) == getattr(things[0], name) for name in asked)

    return [tuple(sorted(padded, key=likeness, reverse=True)[: len(things)])]


def _right(verdict: Verdict) -> tuple[bool, int]:
    v = verdict
    return v.exact, v.object + v.shape + v.colour + v.size + v.style + v.position + v.relation


def _compare(match: tuple[Found | None, ...], wanted: Expectation) -> tuple[bool, bool, bool, bool, bool, bool, bool]:
    """object, shape, colour, size, style, position, relation of one matching."""
    pairs = list(zip(match, wanted.things, strict=True))
    shape = all(f is not None and w.shape in (None, f.shape) for f, w in pairs)
    colour = all(f is not None and w.colour in (None, f.colour) for f, w in pairs)
    size = all(f is not None and w.size in (None, f.size) for f, w in pairs)
    style = all(f is not None and w.style in (None, f.style) for f, w in pairs)
    place = all(f is not None and _is_at(f, w) for f, w in pairs)
    related = wanted.relation is None
    if len(match) == 2 and match[0] is not None and match[1] is not None:
        related = related or _relation(match[0], match[1]) == wanted.relation
    return shape and colour, shape, colour, size, style, place, related


def _relation(first: Found, second: Found) -> str | None:
    """How one thing stands to another; a place says nothing of two that overlap, and a little hidden is neither."""
    hidden = max(first.hidden, second.hidden)
    if hidden > 0:
        if hidden < LEAST_HIDDEN:
            return None
        return "behind" if first.hidden == hidden else "in front of"
    return relation(first.x, first.y, second.x, second.y)


def _is_at(found: Found, wanted: ThingExpectation) -> bool:
    return wanted.position is None or position(found.x, found.y) == wanted.position
