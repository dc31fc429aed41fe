"""How near the images of the preview decoder are to those of the exact one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from minisd._internal.image_quality import psnr
from minisd.pipeline import StableDiffusion


class PreviewQuality(NamedTuple):
    """PSNR in dB to the exact decoder: of finished images, and of x0 in the first quarter of the steps."""

    mean_psnr: float
    worst_psnr: float
    early_psnr: float


@torch.no_grad()
def measure_preview(sd: StableDiffusion, prompts: Sequence[str], seed: int, steps: int | None) -> PreviewQuality:
    """Draw all prompts, the k-th from seed + k, and decode the same latents with both decoders."""
    run = list(sd.denoise(list(prompts), seed=seed, num_inference_steps=steps))
    early = [step.x0 for step in run[: (len(run) + 3) // 4]]
    finished, expected = (
        [value for z in latents for value in psnr(sd.decode(z), sd.preview(z)).tolist()]
        for latents in ([run[-1].latents], early)
    )
    return PreviewQuality(sum(finished) / len(finished), min(finished), sum(expected) / len(expected))
