"""Generate images for prompts, judge them with the exact checker, and compute rates with confidence intervals."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from minisd import images
from minisd.pipeline import StableDiffusion
from minisd.sticker.world.captions import Expectation, parse_caption
from minisd.sticker.world.checker.check import Verdict, check

SKILLS = ("exact", "object", "colour", "shape", "size", "style", "position", "relation", "count", "background")
BATCH = 16  # images generated at once


class Rate(NamedTuple):
    """A number of successes in a number of trials."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share of successes, in [0, 1]."""
        return self.right / self.total

    def as_json(self) -> dict[str, float]:
        """The rate, its 95 % interval, and the number of trials."""
        low, high = wilson_interval(self.value, self.total)
        return {"rate": self.value, "low": low, "high": high, "count": self.total}


class Judged(NamedTuple):
    """A verdict and an image for each prompt."""

    verdicts: list[Verdict]
    pictures: list[Image.Image]
    prompts: list[str]

    @property
    def exact(self) -> Rate:
        """The rate of exact images."""
        return Rate(sum(verdict.exact for verdict in self.verdicts), len(self.verdicts))


def wilson_interval(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate observed in `count` trials (Wilson 1927), which is valid near 0 and 1, too."""
    z = 1.96**2 / count
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z * z / 4) / (1 + z)
    return max(0.0, min(rate, middle - reach)), min(1.0, max(rate, middle + reach))  # contains the rate after rounding


def judge_prompts(
    sd: StableDiffusion,
    prompts: Sequence[str],
    seed: int,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    reuse_features: int = 1,
    previews: bool = False,
    label: str | None = None,
    meant: Sequence[Expectation | str] | None = None,
) -> Judged:
    """Generate an image for each prompt, the k-th from seed + k, and judge it.

    previews: judge images of the preview decoder. label: shows a progress bar with this name. meant: what each image is
    compared with, if not with its prompt.
    """
    meant = prompts if meant is None else meant
    judged = Judged([], [], list(prompts))
    output: dict[str, Any] = {"output_type": "latent"} if previews else {}
    for k in tqdm(range(0, len(prompts), BATCH), desc=label, leave=False, disable=None if label else True):
        drawn = sd(
            list(prompts[k : k + BATCH]),
            negative_prompt=negative_prompt,
            seed=seed + k,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            reuse_features=reuse_features,
            **output,
        ).images
        drawn = images.to_pil(sd.preview(drawn)) if previews else drawn
        pairs = zip(drawn, meant[k : k + BATCH], strict=True)
        judged.verdicts.extend(check(images.from_pil(image)[0], expected) for image, expected in pairs)
        judged.pictures.extend(drawn)
    return judged


def asked_skills(expected: Expectation) -> set[str]:
    """The skills that an expectation tests; every image is right in the others."""
    skills = {"exact", "count"}
    attributes = ("colour", "shape", "size", "style", "position")
    skills |= {name for name in attributes if any(getattr(obj, name) for obj in expected.objects)}
    skills |= {name for name in ("relation", "background") if getattr(expected, name)}
    return skills | ({"object"} if any(obj.shape and obj.colour for obj in expected.objects) else set())


def skill_rates(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Rate]:
    """The rate of each skill, over the prompts that test it; in the order of SKILLS."""
    pairs = [(asked_skills(parse_caption(prompt)), verdict) for prompt, verdict in zip(prompts, verdicts, strict=True)]
    results = {skill: [bool(getattr(v, skill)) for skills, v in pairs if skill in skills] for skill in SKILLS}
    return {skill: Rate(sum(right), len(right)) for skill, right in results.items() if right}
