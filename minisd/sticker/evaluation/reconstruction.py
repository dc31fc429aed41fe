"""Measure an autoencoder: how well scenes survive encoding and decoding."""

import math
from typing import NamedTuple

import torch

from minisd._internal.image_quality import psnr, ssim
from minisd.models import VAE
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.training.dataset import FIRST_TEST_SEED, training_scenes
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render

TARGET_EXACT_RATE = 0.995  # of an autoencoder that loses nothing which the checker needs


class Reconstruction(NamedTuple):
    """PSNR in dB, SSIM, and the rate of reconstructions that the checker finds exact."""

    mean_psnr: float
    worst_percent_psnr: float  # mean over the worst 1 %
    worst_psnr: float
    mean_ssim: float
    exact: Rate


@torch.no_grad()
def measure_reconstruction(vae: VAE, count: int, seed: int) -> Reconstruction:
    """Encode and decode `count` test scenes at the training size of the autoencoder."""
    weight = next(vae.parameters())
    scenes = training_scenes(count, FIRST_TEST_SEED + seed)
    decibels, similarity, right = [], [], 0
    for k in range(0, count, 2 * BATCH):
        part = scenes[k : k + 2 * BATCH]
        pixels = render(part, vae.config.sample_size, weight.device)
        again = vae.decode(vae.encode(pixels.to(weight.dtype)).mean).float().clamp(-1, 1)
        decibels += psnr(pixels, again).tolist()
        similarity += ssim(pixels, again).tolist()
        right += sum(check(image, scene).exact for image, scene in zip(again.cpu(), part, strict=True))
    decibels.sort()
    worst = decibels[: math.ceil(count / 100)]
    return Reconstruction(
        sum(decibels) / count, sum(worst) / len(worst), decibels[0], sum(similarity) / count, Rate(right, count)
    )
