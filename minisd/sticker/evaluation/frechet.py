"""Distances between a model's images and those of the world, in the features of CLIP's image encoder.

Frechet distances grow as samples shrink, and the autoencoder adds a part. For comparison, two sets of scenes, and
scenes that were only encoded and decoded, are measured with the same number of images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minisd import images
from minisd.errors import InputError
from minisd.interpret.clip_ranking import resize_and_crop
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH, judge_prompts
from minisd.sticker.training.dataset import FIRST_TEST_SEED, training_scenes
from minisd.sticker.world.captions import sample_caption
from minisd.sticker.world.render import render

REFERENCE_OFFSET = 7919  # of the seed: the reference scenes differ from those whose captions are the prompts


class Distance(NamedTuple):
    """Between two sets of images: the Frechet distance, and the unbiased squared maximum mean discrepancy."""

    frechet: float
    mmd: float


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between the normal distributions with the means and covariances of two sets of vectors (N, D), (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) (Heusel et al. 2017, equation 6). Raises InputError.
    """
    first, second = _checked(first, second)
    one, two = torch.cov(first.T), torch.cov(second.T)
    shared = torch.linalg.eigvals(one @ two).real.clamp(min=0).sqrt().sum()  # negative only by rounding
    between = (first.mean(0) - second.mean(0)).square().sum()
    return float(between + one.trace() + two.trace() - 2 * shared)


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of vectors (N, D), (M, D), with the kernel (x.y / D + 1)^3.

    The kernel inception distance of Binkowski et al. 2018 without the Inception network: its mean is 0 for equal
    distributions and any N, and single values may be negative. Raises InputError.
    """
    first, second = _checked(first, second)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:
        all_pairs = kernel(x, x)
        return (all_pairs.sum() - all_pairs.trace()) / (len(x) * (len(x) - 1))

    return float(among(first) + among(second) - 2 * kernel(first, second).mean())


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise InputError(
            f"distances are between two sets of vectors, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "give (N, D) and (M, D) with N, M >= 2."
        )
    return first.double(), second.double()


@torch.no_grad()
def measure_distances(
    sd: StableDiffusion, clip: CLIP, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> dict[str, Distance]:
    """Distances of three sets of `count` images to reference scenes.

    "scenes": other scenes; "autoencoder": these encoded and decoded; "drawn": images generated from their captions.
    """
    size = sd.vae.config.sample_size
    scenes = training_scenes(count, FIRST_TEST_SEED + seed)
    reference = training_scenes(count, FIRST_TEST_SEED + seed + REFERENCE_OFFSET)
    generator = torch.Generator().manual_seed(seed)
    prompts = [sample_caption(scene, generator) for scene in scenes]
    drawn = judge_prompts(sd, prompts, seed, steps, label=label).pictures
    pixels = render(scenes, size)
    decoded = torch.cat([sd.vae.decode(sd.vae.encode(part).mean).clamp(-1, 1) for part in pixels.split(BATCH)])
    world = _features(clip, render(reference, size))
    sets = {"scenes": pixels, "autoencoder": decoded, "drawn": torch.cat([images.from_pil(each) for each in drawn])}
    vectors = {name: _features(clip, pixels) for name, pixels in sets.items()}
    return {name: Distance(frechet_distance(each, world), squared_mmd(each, world)) for name, each in vectors.items()}


def _features(clip: CLIP, pixels: Tensor) -> Tensor:
    """CLIP's image features before normalisation: (N, 3, H, W) -> (N, P)."""
    pixels = resize_and_crop(pixels, clip.image_encoder.config.image_size)
    return torch.cat([clip.image_encoder.pool(clip.image_encoder(part)) for part in pixels.split(4 * BATCH)])
