"""From scenes to pictures: anti-aliased, batched, on any device."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.errors import InputError
from minisd.world.palette import rgb
from minisd.world.scene import Scene
from minisd.world.shapes import sdf

_CHUNK = 32  # scenes at a time: what is drawn at once stays in the processor's cache


def masks(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """How much of each pixel each thing covers: (B, K, size, size) in [0, 1], K things in the fullest scene.

    Coverage is 0.5 - distance to the edge in pixels, clamped: exact for straight edges along the grid.
    """
    most = max((len(scene.things) for scene in scenes), default=0)
    cover = torch.zeros(len(scenes), most, size, size, device=device)
    for start in range(0, len(scenes), _CHUNK):
        _draw(scenes[start : start + _CHUNK], cover[start : start + _CHUNK])
    return cover


def _draw(scenes: Sequence[Scene], cover: Tensor) -> None:
    """Fill in the masks (B, K, size, size), one call of the distance function for all things of a shape."""
    groups = defaultdict(list)
    for b, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            groups[thing.shape].append((b, k, thing.x, thing.y, thing.radius))
    size = cover.shape[-1]
    centres = (torch.arange(size, device=cover.device) + 0.5) / size  # of the pixels
    for shape, rows in groups.items():
        numbers = torch.tensor(rows, dtype=torch.float32, device=cover.device)
        x, y, radius = numbers[:, 2:].T[:, :, None, None]
        across, down = torch.broadcast_tensors((centres - x) / radius, (centres[:, None] - y) / radius)
        distance = sdf(shape, across, down) * (radius * size)  # in pixels
        b, k = numbers[:, :2].long().T
        cover[b, k] = (0.5 - distance).clamp(0, 1)


def render(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes.  -> float32 (B, 3, size, size), sRGB in [-1, 1].

    Raises InputError without scenes, or for a size below 8 pixels.
    """
    if not scenes or size < 8:
        raise InputError(f"render got {len(scenes)} scenes at {size} pixels; give at least one scene and 8 pixels")
    pictures = rgb([scene.background for scene in scenes], device)[:, :, None, None].repeat(1, 1, size, size)
    for k, cover in enumerate(masks(scenes, size, device).unbind(1)):
        # a scene with fewer things has an empty mask here, whatever the colour
        names = [scene.things[k].colour if k < len(scene.things) else scene.background for scene in scenes]
        pictures = torch.lerp(pictures, rgb(names, device)[:, :, None, None], cover[:, None])
    return pictures


def depth(scenes: Sequence[Scene], size: int = 64, device: torch.device | str = "cpu") -> Tensor:
    """How near everything is, (B, 1, size, size): the background 0, things 0.5 at the edge to 1 in their middle."""
    near = torch.zeros(len(scenes), 1, size, size, device=device)
    centres = (torch.arange(size, device=device) + 0.5) / size
    for b, cover in enumerate(masks(scenes, size, device)):
        for thing, paint in zip(scenes[b].things, cover, strict=False):
            across, down = torch.broadcast_tensors(
                (centres - thing.x) / thing.radius, (centres[:, None] - thing.y) / thing.radius
            )
            height = (-2 * sdf(thing.shape, across, down)).clamp(0, 1)
            near[b, 0] = torch.maximum(near[b, 0], paint * (0.5 + 0.5 * height))
    return near
