"""The initial noise: seeds and generators.

Noise is drawn on the CPU, from one generator for each image: a seed means the same on every device and in every batch.
"""

import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from minisd._internal import memory, validation
from minisd._internal.messages import shown
from minisd.errors import InputError


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise (B, ...), float32 on the CPU: from one generator for the batch, or one for each image."""
    if len(generators) == 1:
        return torch.randn(tuple(shape), generator=generators[0], device=generators[0].device).cpu()
    rows = [torch.randn(tuple(shape[1:]), generator=each, device=each.device).cpu() for each in generators]
    return torch.stack(rows)


def noise_circle(frames: int, shape: Sequence[int], seed: int) -> Tensor:
    """Unit noise for the frames of a loop, (frames, C, h, w): neighbours are similar, the last one and the first too.

    shape: of the latents, (C, h, w). The frames are points on a circle through two draws of noise, cos(a) x + sin(a) y.
    Raises InputError, and OutOfMemory where they will not fit.
    """
    frames = validation.whole_number(frames, "frames", 2, 10_000)
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise InputError(f"shape is {shown(shape)}, expected (C, h, w), the shape of the latents.")
    shape = [validation.whole_number(side, "a side of shape", 1, 10**6) for side in shape]
    memory.check(4 * (frames + 2) * math.prod(shape), f"the noise of {frames} frames")
    x, y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(validation.seed(seed)))
    angles = (2 * math.pi / frames * torch.arange(frames)).view(-1, 1, 1, 1)
    return angles.cos() * x + angles.sin() * y


def make_generators(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> tuple[list[torch.Generator], list[int] | None]:
    """One generator, or one for each image; and the seeds, where they were seeded here."""
    if generator is not None:
        if seed is not None:
            raise InputError("a seed and a generator were both given; give one of them.")
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        if not all(isinstance(each, torch.Generator) for each in generators):
            raise InputError("generator is neither a torch.Generator nor a list of them; expected torch.Generator().")
        if isinstance(generator, torch.Generator) or len(generators) == count:
            return generators, None
        raise InputError(f"there are {len(generators)} generators for {count} images; give one, or one for each image.")
    first = secrets.randbelow(2**32) if seed is None else validation.seed(seed)
    seeds = [(first + k) % (validation.LARGEST_SEED + 1) for k in range(count)]
    return [torch.Generator().manual_seed(each) for each in seeds], seeds
