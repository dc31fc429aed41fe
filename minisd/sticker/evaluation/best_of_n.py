"""Measure how much better images become if several are generated and CLIP chooses the one closest to the prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from minisd import images
from minisd.interpret.clip_ranking import best_of, clip_scores
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import Rate, judge_prompts
from minisd.tokenizer import Tokenizer


class BestOfNRates(NamedTuple):
    """Rates of exact images: the first of each prompt, the one that CLIP chose, and any of them.

    auc: the probability that an exact image has a higher score than an inexact one; 0.5 by chance.
    """

    first: Rate
    chosen: Rate
    any: Rate
    auc: float


def measure_best_of_n(
    sd: StableDiffusion,
    clip: CLIP,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n: int,
    seed: int,
    steps: int | None = None,
    label: str | None = None,
) -> BestOfNRates:
    """Generate `n` images for each prompt, and let CLIP choose one of them."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    judged = judge_prompts(sd, repeated, seed, steps, label=label)
    pixels = torch.cat([images.from_pil(image) for image in judged.pictures])
    scores = clip_scores(clip, tokenizer, pixels, repeated)
    right = torch.tensor([verdict.exact for verdict in judged.verdicts])
    groups = right.view(-1, n)
    higher = scores[right][:, None] > scores[~right]
    return BestOfNRates(
        Rate(int(groups[:, 0].sum()), len(prompts)),
        Rate(int(right[best_of(scores, n)].sum()), len(prompts)),
        Rate(int(groups.any(1).sum()), len(prompts)),
        float(higher.float().mean()) if higher.numel() else 0.5,
    )
