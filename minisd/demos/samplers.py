"""The samplers: several ways from the same noise to an image, side by side."""

import copy

import torch
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd._internal.image_quality import psnr
from minisd.demos.charts import Curve, draw_curves
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, fitted
from minisd.demos.inputs import PROMPT, check_task, moments, noise_of, steps_of
from minisd.demos.unet_calls import recorded_calls
from minisd.pipeline import DenoisingStep, StableDiffusion
from minisd.schedulers import DDIM, DPMSolverMultistep, Euler, EulerAncestral, Heun, Scheduler, UniPC

SAMPLERS: tuple[type[Scheduler], ...] = (DDIM, Euler, EulerAncestral, Heun, DPMSolverMultistep, UniPC)
STEPS = 8  # few, so that the samplers differ
REFERENCE_STEPS = 50
SHOWN = 5  # of the clean images that a run predicts


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    seed: int = 3,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """Every sampler with the same noise: what it predicts on its way, its result, and its path. Raises InputError."""
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps, STEPS), validation.seed(seed)
    noise = noise_of(sd, seed)
    reference, _ = _run(sd, DDIM, prompt, seed, REFERENCE_STEPS, guidance_scale)
    goal = reference[-1].latents.cpu()
    expected = sd.decode(goal)
    rows, curves, cells = [], [], []
    for kind in SAMPLERS:
        name = kind.__name__
        run, seen = _run(sd, kind, prompt, seed, steps, guidance_scale)
        chosen = [run[k] for k in moments(len(run), SHOWN)]
        result = sd.decode(run[-1].latents)
        apart = float((run[-1].latents.cpu() - goal).norm() / goal.norm())
        likeness = float(psnr(result.cpu(), expected.cpu()))
        guesses = decoded(sd, torch.cat([step.x0 for step in chosen]))
        panels = [
            Panel(f"call {step.i + 1}, t = {float(step.t):.0f}", guess, f"what {name} predicts at call {step.i + 1}")
            for step, guess in zip(chosen, guesses, strict=True)
        ]
        final = fitted(images.to_pil(result)[0])
        panels.append(Panel(f"the result, {apart:.2f} from the reference", final, f"the image of {name}"))
        rows.append(row_of(f"{name}: {len(run)} calls of the UNet", panels))
        curves.append(Curve(name, _shares([*seen, run[-1].latents], noise, goal)))
        cells.append((name, len(run), apart, likeness))
    paths = draw_curves(curves, "share of the first noise", "share of the reference's latents", (560, 380), dots=True)
    nearest = min(cells, key=lambda cell: cell[2])
    return Demo(
        "Samplers: many ways out of the same noise",
        (
            f"All begin with the noise of seed {seed} and take {steps} steps; the reference is DDIM with "
            f"{REFERENCE_STEPS}.",
            f"Nearest to the reference is {nearest[0]}, {nearest[2]:.2f} of its size away; EulerAncestral adds new "
            "noise at each step and goes elsewhere.",
        ),
        (
            *rows,
            row_of(
                "The paths: how much of the first noise and of the reference is in x_t",
                [Panel("each dot is a call; all begin at the right", paths, "one curve for each sampler, from noise")],
            ),
        ),
        Table(("sampler", "calls", "distance from the reference", "PSNR (dB)"), tuple(cells)),
        tuple(f"minisd/schedulers/{name}.py" for name in ("ddim", "euler", "heun", "dpm_solver", "unipc")),
        "06",
    )


def _run(
    sd: StableDiffusion, kind: type[Scheduler], prompt: str, seed: int, steps: int, guidance_scale: float | None
) -> tuple[list[DenoisingStep], list[Tensor]]:
    """The steps of a run with another sampler, and the latents as the UNet saw them at each call."""
    drawing = copy.copy(sd)  # the caller's pipeline keeps its sampler
    drawing.scheduler = kind.in_place_of(sd.scheduler)
    with recorded_calls(sd.unet) as calls:
        run = list(drawing.denoise(prompt, seed=seed, num_inference_steps=steps, guidance_scale=guidance_scale))
    return run, [call.latents for call in calls]


def _shares(path: list[Tensor], noise: Tensor, goal: Tensor) -> list[tuple[float, float]]:
    """For each x of a path the numbers a, b for which a * noise + b * goal is nearest to it."""
    basis = torch.stack([noise.flatten(), goal.flatten()], dim=1).double()
    points = torch.stack([x.cpu().flatten() for x in path], dim=1).double()
    return [(float(a), float(b)) for a, b in torch.linalg.lstsq(basis, points).solution.T]
