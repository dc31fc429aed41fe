"""The noise schedule: how much image and how much noise there is at each timestep, and how that looks."""

import torch

from minisd._internal import validation
from minisd.demos.charts import Curve, draw_curves
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, grey_map, pictures
from minisd.demos.inputs import check_task, moments, noise_of, pixels_of, steps_of
from minisd.images import Picture
from minisd.pipeline import StableDiffusion

SHOWN = 7  # timesteps
POINTS = 101  # of a curve


def show(
    sd: StableDiffusion, image: Picture | None = None, seed: int = 1, num_inference_steps: int | None = None
) -> Demo:
    """An image under ever more noise, and the curves of signal and noise. Raises InputError."""
    check_task(sd, "text")
    schedule, total = sd.scheduler.schedule, sd.scheduler.schedule.num_train_timesteps
    steps = steps_of(sd, num_inference_steps)
    pixels, noise = pixels_of(sd, image), noise_of(sd, seed)
    x0 = sd.encode(pixels, torch.Generator().manual_seed(validation.seed(seed))).cpu()
    times = moments(total, SHOWN)
    noisy = torch.cat([schedule.add_noise(x0, noise, t) for t in times])
    levels = [(schedule.alpha_bar(t) ** 0.5, (1 - schedule.alpha_bar(t)) ** 0.5) for t in times]
    captions = [f"t = {t}: signal {a:.2f}, noise {b:.2f}" for t, (a, b) in zip(times, levels, strict=True)]
    limit = float(x0.abs().max())
    curves = [
        Curve(name, [(t, share) for t in moments(total, POINTS) for share in [amount(schedule.alpha_bar(t)) ** 0.5]])
        for name, amount in (("signal", lambda bar: bar), ("noise", lambda bar: 1 - bar))
    ]
    visited = sd.scheduler.grid(steps).timesteps
    alt = "the image with {} of its amplitude left and noise of deviation {}"
    return Demo(
        "Noise schedule: an image is exchanged for noise",
        (
            "x_t = signal * x_0 + noise * eps; the squares of signal and noise sum to 1, so that latents of deviation "
            "1 keep it at every timestep.",
            f"At the last timestep, t = {times[-1]}, {100 * levels[-1][0]:.1f} % of the image's amplitude is left.",
            f"{type(sd.scheduler).__name__} with {steps} steps visits t = {_few(visited.tolist())}.",
        ),
        (
            row_of(
                "x_t, decoded",
                [Panel("the image itself", pictures(pixels)[0], "the image before any noise")]
                + [
                    Panel(caption, shown, alt.format(f"{100 * a:.0f} %", f"{b:.2f}"))
                    for caption, shown, (a, b) in zip(captions, decoded(sd, noisy), levels, strict=True)
                ],
            ),
            row_of(
                f"x_t itself: channel 0 of {x0.shape[1]}, black is {-limit:.1f} and white {limit:.1f}",
                [Panel("x_0", grey_map(x0[0, 0], -limit, limit), "the image's latents, one channel, in grey")]
                + [
                    Panel(f"t = {t}", grey_map(x[0], -limit, limit), f"the latents at timestep {t}, one channel")
                    for t, x in zip(times, noisy, strict=True)
                ],
            ),
            row_of(
                "Signal and noise at every timestep",
                [
                    Panel(
                        "sqrt(alpha_bar) and sqrt(1 - alpha_bar)",
                        draw_curves(curves, "timestep t", "share of the amplitude", (520, 280)),
                        "two curves: the signal falls from 1 towards 0 while the noise rises to 1",
                    )
                ],
            ),
        ),
        Table(
            ("t", "signal", "noise", "deviation of x_t"),
            tuple((t, a, b, float(x.std())) for t, (a, b), x in zip(times, levels, noisy, strict=True)),
        ),
        ("minisd/schedulers/schedule.py",),
        "05",
    )


def _few(times: list[float]) -> str:
    """The first and the last of many numbers."""
    texts = [f"{t:g}" for t in times]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "...", *texts[-2:]])
