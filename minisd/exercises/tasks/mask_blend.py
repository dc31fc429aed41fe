"""Inpainting by any model: what is outside of the mask is put back after each step."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import image_to_image, normal, uniform
from minisd.pipeline import denoising

TASK = """
Put the given image back outside of the mask. Both are noisy latents of the same noise level.

x, the latents of the run, and image_x, those of the given image (B, C, h, w); mask (B, 1, h, w): 1 where the
image is painted anew, 0 where it stays, and between at the border -> (B, C, h, w).
"""


def mask_blend(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(image_x, x, mask)


def cases() -> list[Case]:
    x, image_x = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    hard = (uniform(2, 1, 4, 5, seed=3) > 0.5).float()
    return [
        Case("a mask of 0 and 1", (x, image_x, hard)),
        Case("a soft border", (x, image_x, uniform(2, 1, 4, 5, seed=4))),
    ]


def _inverted(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return mask * image_x + (1 - mask) * x


def _hard_border(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask >= 0.5, x, image_x)


def _added(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return x + (1 - mask) * image_x


def _one_mask(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(image_x, x, mask[:1])


def _as_sum(x: Tensor, image_x: Tensor, mask: Tensor) -> Tensor:
    return mask * x + (1 - mask) * image_x


def install(solution: Solution) -> AbstractContextManager[None]:
    return replaced(denoising, "mask_blend", solution)


def _with_mask(sd: Any) -> dict[str, Any]:
    options = image_to_image(sd, strength=0.9)
    mask = torch.zeros(1, 1, *options["image"].shape[2:])
    mask[..., : mask.shape[-1] // 2] = 1
    return options | {"mask_image": mask}


EXERCISE = Exercise(
    number=24,
    name="mask_blend",
    title="Inpainting by a blend",
    level=1,
    minutes=10,
    notebook="18",
    task=TASK,
    reference=mask_blend,
    answer=denoising.mask_blend,
    cases=cases,
    mistakes=(
        Mistake("inside and outside are exchanged; 1 is where the image is painted anew", _inverted),
        Mistake("the border becomes hard; between 0 and 1 both are mixed", _hard_border),
        Mistake("the given image is added to x, which stays there as well", _added),
        Mistake("all images get the mask of the first one", _one_mask),
    ),
    hints=(
        "At mask 1 the answer is x, at mask 0 it is image_x.",
        "A mask of 0.5 takes half of each.",
        "mask has one channel; multiplication repeats it for all channels.",
    ),
    install=install,
    run=_with_mask,
    needs=("add_noise",),
    variants=(_as_sum,),
)
