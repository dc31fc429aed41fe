"""The latents callback: x_t beside the predicted x0, step by step, while an image is drawn."""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, grey_map
from minisd.demos.inputs import PROMPT, check_task, steps_of
from minisd.interpret.film import Film
from minisd.pipeline import DenoisingStep, StableDiffusion

SHOWN = 8  # steps
SETTLED = 0.5  # of the first prediction's distance from the result


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    seed: int = 3,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """What a callback sees at each step: the latents x_t and the predicted clean latents x0. Raises InputError."""
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    seen: list[DenoisingStep] = []
    film = Film(sd, every=math.ceil(steps / (SHOWN - 1)))
    given: dict[str, Any] = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    for step in film.watch(sd.denoise(prompt, **given)):  # the body of this loop is the callback
        seen.append(step)
    final = seen[-1].latents
    x_t, x0 = (torch.cat([getattr(step, name) for step in film.steps]) for name in ("latents", "x0"))
    limit = float(max(x_t.abs().max(), x0.abs().max()))
    far = {name: [_distance(getattr(step, name), final) for step in seen] for name in ("x0", "latents")}
    settled = {name: next(k for k, d in enumerate(each) if d <= SETTLED) for name, each in far.items()}
    captions = [f"step {step.i}, t = {float(step.t):.0f}" for step in film.steps]
    return Demo(
        "The latents callback: watch an image come out of noise",
        (
            f"After each of the {len(seen)} steps the callback gets x_t, the latents, and x0, the clean latents that "
            "the UNet predicts at that moment.",
            f"x0 comes within {SETTLED:g} of the result, in parts of its size, at step {settled['x0']}, x_t at step "
            f"{settled['latents']}: a preview of x0 tells early what the image will be.",
        ),
        (
            row_of("x_t, decoded: noise until late", _panels(captions, decoded(sd, x_t), "the decoded latents")),
            row_of("x0, decoded: blurred first, then right", _panels(captions, decoded(sd, x0), "the predicted image")),
            row_of(
                f"x_t itself: channel 0 of {x_t.shape[1]}, black is {-limit:.1f} and white {limit:.1f}",
                _panels(captions, [grey_map(x[0], -limit, limit) for x in x_t], "one channel of the latents"),
            ),
            row_of(
                "x0 itself: channel 0",
                _panels(captions, [grey_map(x[0], -limit, limit) for x in x0], "one channel of the predicted latents"),
            ),
        ),
        Table(
            ("step", "t", "deviation of x_t", "x_t from the result", "x0 from the result"),
            tuple(
                (step.i, round(float(step.t)), float(step.latents.std()), far["latents"][k], far["x0"][k])
                for k, step in enumerate(seen)
            ),
        ),
        ("minisd/pipeline/denoising.py", "minisd/interpret/film.py"),
        "15",
    )


def _panels(captions: list[str], shown: list[Image.Image], what: str) -> list[Panel]:
    return [Panel(caption, image, f"{what} at {caption}") for caption, image in zip(captions, shown, strict=True)]


def _distance(x: Tensor, final: Tensor) -> float:
    return float((x - final).norm() / final.norm())
