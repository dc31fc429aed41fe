"""Guidance: the predictions without and with the prompt, their difference, and what a scale makes of them."""

import torch

from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, heat_map, pictures
from minisd.demos.inputs import PROMPT, check_task, moments, steps_of
from minisd.demos.unet_calls import clean_latents, recorded_calls
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion, guidance

SHOWN = 6  # calls
SCALES = (0.0, 1.0)  # drawn beside the given one and four times as much


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    negative_prompt: str = "",
    seed: int = 3,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """Both predictions of several calls as the clean images that they mean, and images of several scales.

    Raises InputError, also for a scale of 1, with which the UNet is not asked without the prompt.
    """
    check_task(sd, "text")
    if sd.unet.config.guidance_width is not None:
        raise InputError("this model has learned guidance and gives one prediction a call; choose another model.")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)
    scale = validation.guidance(sd.defaults.guidance_scale if guidance_scale is None else guidance_scale)
    if scale == 1:
        raise InputError("guidance_scale is 1, expected another number: with 1 only the prompt is asked.")
    with recorded_calls(sd.unet) as calls:
        run = list(sd.denoise(prompt, negative_prompt, seed=seed, num_inference_steps=steps, guidance_scale=scale))
    shown = moments(len(calls), SHOWN)
    halves = [calls[k].output.chunk(2) for k in shown]
    without, given = (
        torch.cat([clean_latents(sd, calls[k], pair[half]) for k, pair in zip(shown, halves, strict=True)])
        for half in (0, 1)
    )
    guided = torch.cat([
        clean_latents(sd, calls[k], guidance.combine(u, c, scale)) for k, (u, c) in zip(shown, halves, strict=True)
    ])  # fmt: skip
    sizes = [float((c - u).norm() / c.norm()) for u, c in (call.output.chunk(2) for call in calls)]
    maps = [(c - u)[0].norm(dim=0) for u, c in halves]
    brightest = max(float(each.max()) for each in maps)
    scales = sorted({*SCALES, scale, 4 * scale})
    images = [_draw(sd, prompt, negative_prompt, seed, steps, each) for each in scales]
    times = [f"t = {calls[k].t}" for k in shown]
    titles = {
        "Without the prompt" if not negative_prompt else f"For the negative prompt {negative_prompt!r}": without,
        "With the prompt": given,
        f"Guided: without + {scale:g} (with - without)": guided,
    }
    rows = [
        row_of(
            f"{title}: the clean image that the prediction means",
            [
                Panel(time, picture, f"the predicted image at {time}, {title.lower()}")
                for time, picture in zip(times, decoded(sd, latents), strict=True)
            ],
        )
        for title, latents in titles.items()
    ]
    rows.append(
        row_of(
            "The difference of the two predictions (brighter: larger)",
            [
                Panel(f"{time}: {100 * sizes[k]:.0f} %", heat_map(each, brightest), f"where the words matter at {time}")
                for time, k, each in zip(times, shown, maps, strict=True)
            ],
        )
    )
    rows.append(
        row_of(
            f"The finished image for several scales, seed {seed}",
            [
                Panel(f"scale {each:g}", picture, f"the image with guidance {each:g}")
                for each, picture in zip(scales, pictures(torch.cat(images)), strict=True)
            ],
        )
    )
    apart = float((guided[0] - run[shown[0]].x0[0].to(guided)).abs().max())
    return Demo(
        "Guidance: from without the prompt to with it, and beyond",
        (
            f"Each call gives the UNet the latents twice, for {negative_prompt!r} and for {prompt!r}, and it makes two "
            "predictions.",
            f"They differ by {100 * sizes[0]:.0f} % of their size at the first call and by {100 * sizes[-1]:.0f} % at "
            f"the last; most at t = {calls[max(range(len(sizes)), key=sizes.__getitem__)].t}.",
            f"The guided prediction leads to the sampler's x0 (largest difference at the first call: {apart:.1g}).",
        ),
        tuple(rows),
        Table(
            ("call", "t", "difference (of the size)"),
            tuple((k, call.t, size) for k, (call, size) in enumerate(zip(calls, sizes, strict=True))),
        ),
        ("minisd/pipeline/guidance.py",),
        "08",
    )


def _draw(sd: StableDiffusion, prompt: str, negative: str, seed: int, steps: int, scale: float) -> torch.Tensor:
    pixels: torch.Tensor = sd(
        prompt, negative, seed=seed, num_inference_steps=steps, guidance_scale=scale, output_type="pt"
    ).images
    return pixels
