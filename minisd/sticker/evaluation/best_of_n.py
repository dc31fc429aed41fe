"""What it brings to draw several pictures and keep the one that CLIP finds closest to its prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from minisd import images
from minisd.interpret.clip_ranking import best, likeness
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.metrics import Rate, judge_prompts
from minisd.tokenizer import Tokenizer


class Choice(NamedTuple):
    """Exact pictures: the first of each prompt, the one that CLIP chose, and how many prompts have one at all.

    auc: how often, of an exact picture and another one, the exact one is closer to its prompt; 0.5 by chance.
    """

    first: Rate
    chosen: Rate
    any: Rate
    auc: float


def best_of(
    sd: StableDiffusion,
    clip: CLIP,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    of: int,
    seed: int,
    steps: int | None = None,
    label: str | None = None,
) -> Choice:
    """Draw `of` pictures of each prompt, of which CLIP chooses one."""
    each = [prompt for prompt in prompts for _ in range(of)]
    judged = judge_prompts(sd, each, seed, steps, label=label)
    pixels = torch.cat([images.from_pil(picture) for picture in judged.pictures])
    scores = likeness(clip, tokenizer, pixels, each)
    right = torch.tensor([verdict.exact for verdict in judged.verdicts])
    groups = right.view(-1, of)
    better = scores[right][:, None] > scores[~right]
    return Choice(
        Rate(int(groups[:, 0].sum()), len(prompts)),
        Rate(int(right[best(scores, of)].sum()), len(prompts)),
        Rate(int(groups.any(1).sum()), len(prompts)),
        float(better.float().mean()) if better.numel() else 0.5,
    )
