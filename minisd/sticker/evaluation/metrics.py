"""How much of what was asked for is right, and how close a reconstruction is, with intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd.errors import InputError
from minisd.models import VAE
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.dataset import UNSEEN, lessons
from minisd.sticker.world.captions import Expectation, expectation
from minisd.sticker.world.checker.check import Verdict, check
from minisd.sticker.world.render import render

SKILLS = ("exact", "object", "colour", "shape", "size", "style", "position", "relation", "count", "background")
BATCH = 16  # pictures drawn at once
GATE = 0.995  # of an autoencoder's reconstructions are to be exact


class Rate(NamedTuple):
    """How many of how many."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.total

    def as_json(self) -> dict[str, float]:
        """The share, its 95 % interval, and of how many."""
        low, high = interval(self.value, self.total)
        return {"rate": self.value, "low": low, "high": high, "count": self.total}


class Judged(NamedTuple):
    """Verdicts and pictures, one of each for every prompt."""

    verdicts: list[Verdict]
    pictures: list[Image.Image]


class Reconstruction(NamedTuple):
    """What is left of scenes after an autoencoder: PSNR in dB, SSIM, share that the checker finds exact."""

    mean_psnr: float
    worst_percent_psnr: float  # mean over the worst 1 %
    worst_psnr: float
    mean_ssim: float
    exact: Rate


def interval(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate seen in `count` trials (Wilson 1927): of use near 0 and 1, too."""
    z = 1.96**2 / count
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z * z / 4) / (1 + z)
    return max(0.0, min(rate, middle - reach)), min(1.0, max(rate, middle + reach))  # the rate is in it, rounded or not


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1]: -> (B,), 100 where they are the same."""
    _check_same(first, second)
    error = ((first - second) / 2).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of pictures (B, C, H, W) in [-1, 1]: -> (B,), 1 where they are the same.

    Mean over channels and over all windows of 11 x 11 pixels, weighted by a Gaussian of standard deviation 1.5, that
    lie inside the picture; K1 = 0.01, K2 = 0.03 (Wang et al. 2004, equation 13).
    """
    _check_same(first, second)
    if min(first.shape[2:]) < 11:
        raise InputError(f"ssim got pictures of shape {tuple(first.shape)}; give at least 11 x 11 pixels.")
    gauss = torch.exp(-((torch.arange(11, dtype=first.dtype, device=first.device) - 5) ** 2) / (2 * 1.5**2))
    window = (gauss[:, None] * gauss / gauss.sum() ** 2)[None, None]
    x, y = (pictures.flatten(0, 1)[:, None] / 2 + 0.5 for pictures in (first, second))  # the means want [0, 1]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(each, window) for each in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return alike.mean((1, 2, 3)).view(first.shape[:2]).mean(1)


def _check_same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError(f"pictures of shapes {shapes} cannot be compared; give two batches (B, 3, H, W) of one shape.")


@torch.no_grad()
def reconstruction(vae: VAE, count: int, seed: int) -> Reconstruction:
    """Encode and decode `count` scenes that training did not show, at the size that the autoencoder was trained at."""
    weight = next(vae.parameters())
    scenes = lessons(count, UNSEEN + seed)
    decibels, likeness, right = [], [], 0
    for k in range(0, count, 2 * BATCH):
        part = scenes[k : k + 2 * BATCH]
        pixels = render(part, vae.config.sample_size, weight.device)
        again = vae.decode(vae.encode(pixels.to(weight.dtype)).mean).float().clamp(-1, 1)
        decibels += psnr(pixels, again).tolist()
        likeness += ssim(pixels, again).tolist()
        right += sum(check(picture, scene).exact for picture, scene in zip(again.cpu(), part, strict=True))
    decibels.sort()
    worst = decibels[: math.ceil(count / 100)]
    return Reconstruction(
        sum(decibels) / count, sum(worst) / len(worst), decibels[0], sum(likeness) / count, Rate(right, count)
    )


def judge_prompts(
    sd: StableDiffusion,
    prompts: Sequence[str],
    seed: int,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    label: str | None = None,
    meant: Sequence[Expectation | str] | None = None,
) -> Judged:
    """Draw a picture of each prompt, the k-th from seed + k, and judge it; a label shows progress under that name.

    meant: what each picture is judged by, the prompt itself unless given.
    """
    meant = prompts if meant is None else meant
    verdicts: list[Verdict] = []
    pictures: list[Image.Image] = []
    for k in tqdm(range(0, len(prompts), BATCH), desc=label, leave=False, disable=None if label else True):
        batch = list(prompts[k : k + BATCH])
        drawn = sd(
            batch,
            negative_prompt=negative_prompt,
            seed=seed + k,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        ).images
        wanted = meant[k : k + BATCH]
        verdicts += [check(images.from_pil(image)[0], each) for image, each in zip(drawn, wanted, strict=True)]
        pictures += drawn
    return Judged(verdicts, pictures)


def asks(wanted: Expectation) -> set[str]:
    """The skills that a prompt puts to the test; the others are right whatever is drawn."""
    skills = {"exact", "count"}
    of_things = ("colour", "shape", "size", "style", "position")
    skills |= {name for name in of_things if any(getattr(thing, name) for thing in wanted.things)}
    skills |= {name for name in ("relation", "background") if getattr(wanted, name)}
    return skills | ({"object"} if any(thing.shape and thing.colour for thing in wanted.things) else set())


def rates(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Rate]:
    """For each skill that the prompts ask for, how many of those that do are right; in the order of SKILLS."""
    pairs = [(asks(expectation(prompt)), verdict) for prompt, verdict in zip(prompts, verdicts, strict=True)]
    asked = {skill: [bool(getattr(v, skill)) for skills, v in pairs if skill in skills] for skill in SKILLS}
    return {skill: Rate(sum(right), len(right)) for skill, right in asked.items() if right}
