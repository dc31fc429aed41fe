"""Render scenes: anti-aliased, in batches, on any device."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.sticker.world.palette import COLOURS, PALE, rgb
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.shapes import SHAPES, sdf
from minisd.sticker.world.styles import SHADOW_OFFSET, STYLES, border_coverage, paint_coverage, shadow_opacity

Window = tuple[slice, slice]  # rows and columns of a canvas
WHOLE: Window = (slice(None), slice(None))
EDGES_FROM = 128  # pixels: on smaller images an edge of one pixel is too wide
_CHUNK = 32  # scenes at a time: the intermediate tensors fit the processor's cache


class Layers(NamedTuple):
    """The coverage of each pixel by each object, regardless of objects in front: each (B, K, size, size) in [0, 1].

    Flat and outlined objects have no border and no shadow.
    """

    paint: Tensor
    border: Tensor  # a sticker's white border; includes the area inside
    shadow: Tensor


def draw_layers(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Layers:
    """Draw paint, border and shadow of each object.

    Coverage is 0.5 - distance to the edge in pixels, clamped: exact for straight edges along the grid.
    """
    most = max((len(scene.objects) for scene in scenes), default=0)
    drawn = Layers(*(torch.zeros(len(scenes), most, size, size, device=device) for _ in Layers._fields))
    for start in range(0, len(scenes), _CHUNK):
        _fill(scenes[start : start + _CHUNK], Layers(*(each[start : start + _CHUNK] for each in drawn)))
    return drawn


def _fill(scenes: Sequence[Scene], drawn: Layers) -> None:
    """Fill the layers in place, with one call of the distance function for all objects of a shape and style."""
    groups = defaultdict(list)
    for b, scene in enumerate(scenes):
        for k, obj in enumerate(scene.objects):
            groups[obj.shape, obj.style].append((b, k, obj.x, obj.y, obj.radius))
    size, device = drawn.paint.shape[-1], drawn.paint.device
    for (shape, style), rows in groups.items():
        numbers = torch.tensor(rows, dtype=torch.float32, device=device)
        (b, k), places = numbers[:, :2].long().T, numbers[:, 2:]
        drawn.paint[b, k] = paint_coverage(edge_distance(shape, places, size), style, size)
        if style == "sticker":
            drawn.border[b, k] = border_coverage(edge_distance(shape, places, size), size)
            drawn.shadow[b, k] = shadow_opacity(edge_distance(shape, places, size, offset=SHADOW_OFFSET), size)


def draw_edges(scenes: Sequence[Scene], size: int, device: torch.device | str = "cpu") -> Tensor:
    """The coverage of each pixel by the edge of flat pale objects on white: (B, K, size, size) in [0, 1].

    The edge is inside the object and one pixel wide.
    """
    most = max((len(scene.objects) for scene in scenes), default=0)
    edges = torch.zeros(len(scenes), most, size, size, device=device)
    if size < EDGES_FROM:
        return edges
    for b, scene in enumerate(scenes):
        for k, obj in enumerate(scene.objects):
            if scene.background == "white" and obj.colour in PALE and obj.style == "flat":
                place = torch.tensor([[obj.x, obj.y, obj.radius]], device=device)
                distance = edge_distance(obj.shape, place, size)[0]
                inside = paint_coverage(distance + 1, obj.style, size)
                edges[b, k] = paint_coverage(distance, obj.style, size) - inside
    return edges


def edge_distance(shape: str, places: Tensor, size: int, window: Window = WHOLE, offset: float = 0) -> Tensor:
    """Signed distance in pixels to the edge of a shape at each of N places (x, y, radius): (N, rows, columns).

    window: the rows and columns of the canvas that are computed. offset: moves the shape to the right and down.
    """
    x, y, radius = places.T[:, :, None, None]
    centres = (torch.arange(size, device=places.device) + 0.5) / size  # of the pixels
    rows, columns = window
    across = (centres[columns] - offset - x) / radius
    down = (centres[rows, None] - offset - y) / radius
    return sdf(shape, *torch.broadcast_tensors(across, down)) * (radius * size)


def masks(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """The visible part of each object in each pixel: (B, K, size, size) in [0, 1], K the largest number of objects.

    An object in front removes what it hides from the mask of the one behind. A border belongs to its sticker; a shadow
    belongs to no object.
    """
    paint, border, _ = draw_layers(scenes, size, device)
    visible = torch.maximum(paint, border)
    for k in range(visible.shape[1] - 1):
        visible[:, k] *= (1 - visible[:, k + 1 :]).prod(1)
    return visible


def render(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """Render scenes.  -> float32 (B, 3, size, size), sRGB in [-1, 1].

    From 128 pixels on, flat objects in a PALE colour on white have a gray edge, because their contrast to white is low.

    Raises InputError without scenes, for a size below 8 pixels, and for an unknown shape, colour or style.
    """
    if not scenes or size < 8:
        raise InputError(f"render got {len(scenes)} scenes at {size} pixels; give at least one scene and 8 pixels.")
    for obj in (obj for scene in scenes for obj in scene.objects):
        for name, known in (("shape", SHAPES), ("colour", COLOURS), ("style", STYLES)):
            if getattr(obj, name) not in known:
                raise InputError(f"there is no {name} {getattr(obj, name)!r}; use one of {', '.join(known)}.")
    pixels = rgb([scene.background for scene in scenes], device)[:, :, None, None].repeat(1, 1, size, size)
    white, black = torch.ones_like(pixels), -torch.ones_like(pixels)
    drawn, edges = draw_layers(scenes, size, device), draw_edges(scenes, size, device)
    for k, (paint, border, shadow) in enumerate(zip(*(each.unbind(1) for each in drawn), strict=True)):
        if any(obj.style == "sticker" for scene in scenes for obj in scene.objects[k : k + 1]):
            pixels = torch.lerp(pixels, black, shadow[:, None])
            pixels = torch.lerp(pixels, white, border[:, None])
        # a scene with fewer objects has an empty mask here, so any colour will do
        names = [scene.objects[k].colour if k < len(scene.objects) else scene.background for scene in scenes]
        pixels = torch.lerp(pixels, rgb(names, device)[:, :, None, None], paint[:, None])
        edge = edges[:, k] * (1 - drawn.paint[:, :k].sum(1).clamp(max=1))  # none where it is in front of another object
        pixels = torch.lerp(pixels, torch.zeros_like(pixels), edge[:, None])  # gray
    return pixels


def depth(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """Depth maps (B, 1, size, size), larger is nearer: 0 for the background, 0.5 at an object's edge, 1 in its centre.

    The values of a partly hidden object are halved, so that all of it is behind the other one.
    """
    near = torch.zeros(len(scenes), 1, size, size, device=device)
    centres = (torch.arange(size, device=device) + 0.5) / size
    paint, border, _ = draw_layers(scenes, size, device)
    for b, cover in enumerate(torch.maximum(paint, border)):
        objects = scenes[b].objects
        for k, (obj, own) in enumerate(zip(objects, cover, strict=False)):
            across, down = torch.broadcast_tensors(
                (centres - obj.x) / obj.radius, (centres[:, None] - obj.y) / obj.radius
            )
            height = (-2 * sdf(obj.shape, across, down)).clamp(0, 1)
            behind = scenes[b].overlapping and k < len(objects) - 1
            near[b, 0] = near[b, 0] * (1 - own) + own * (0.5 + 0.5 * height) * (0.5 if behind else 1)
    return near
