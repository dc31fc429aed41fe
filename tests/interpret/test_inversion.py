"""DDIM inversion: equal to the reference, exact when refined, wrong arguments, the embedded model."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from support.small import small_pipeline
from torch import Tensor

import weights_loader
from minisd.errors import InputError
from minisd.interpret.inversion import invert
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, DDIMInverse, NoiseSchedule, Scheduler

ZERO = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
EPS, V = NoiseSchedule(), NoiseSchedule(prediction_type="v_prediction")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def model(x: Tensor, t: Tensor) -> Tensor:
    """A replacement for the UNet: smooth, not linear, and dependent on the timestep."""
    return 0.3 * torch.tanh(x) + 0.05 * torch.cos(3 * x) + 0.0002 * t.to(x) * x


def run(scheduler: Scheduler, n: int, x: Tensor) -> Tensor:
    grid, memory = scheduler.grid(n), None
    for i, t in enumerate(grid.timesteps):
        x, _, memory = scheduler.step(grid, i, x, model(x, t), memory)
    return x


@pytest.mark.parametrize("n", [1, 7, 20, 50])
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("schedule", [EPS, V, ZERO], ids=["eps", "v", "zero terminal SNR"])
def test_steps_equal_the_reference(schedule: NoiseSchedule, spacing: str, to_one: bool, n: int) -> None:
    ours = DDIMInverse(schedule, spacing, set_alpha_to_one=to_one)
    config = {key: value for key, value in ours.to_config().items() if key != "refine"}
    theirs = diffusers.DDIMInverseScheduler.from_config({**config, "clip_sample": False})
    theirs.set_timesteps(n)
    grid = ours.grid(n)
    assert theirs.timesteps.tolist() == grid.timesteps.tolist()
    theirs.alphas_cumprod = schedule.alpha_bars.clone()  # float64 instead of float32
    theirs.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64) if to_one else schedule.alpha_bars[0]
    x = y = noise(2, 4, 3, 5, dtype=torch.float64)
    for i, t in enumerate(theirs.timesteps):
        x, x0, _ = ours.step(grid, i, x, model(x, t))
        result = theirs.step(model(y, t), t, y)
        y = result.prev_sample
        assert (x - y).abs().max() < 1e-9 * y.abs().max()
        assert (x0 - result.pred_original_sample).abs().max() < 1e-9 * x0.abs().max()


@pytest.mark.parametrize("schedule", [EPS, V, ZERO], ids=["eps", "v", "zero terminal SNR"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_refined_inversion_is_the_exact_inverse_of_ddim(schedule: NoiseSchedule, spacing: str) -> None:
    if schedule is ZERO and spacing == "leading":
        spacing = "linspace"
    down = DDIM(schedule, spacing)
    x = noise(2, 4, 3, 5, dtype=torch.float64)
    errors = []
    for refine in (0, 2, 30):
        up = DDIMInverse(schedule, spacing, refine=refine)
        assert len(up.grid(20)) == 20 * (1 + refine)
        errors.append(float((run(down, 20, run(up, 20, x)) - x).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-8
    assert errors[0] > 1e-3


def test_more_steps_are_closer() -> None:
    x = noise(2, 4, 3, 5, dtype=torch.float64)
    near, far = (float((run(DDIM(), n, run(DDIMInverse(), n, x)) - x).abs().max()) for n in (100, 10))
    assert near < far / 4


def test_ddim_inverse_is_not_a_sampler() -> None:
    assert DDIMInverse not in Scheduler.samplers.values()
    assert Scheduler.samplers["DDIMScheduler"] is DDIM
    for bad in (-1, 1.5, True, "1", 101):
        with pytest.raises(InputError, match="refine is"):
            DDIMInverse(refine=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="predicts x0"):
        DDIMInverse(NoiseSchedule(prediction_type="sample"))
    grid = DDIMInverse(refine=1).grid(3)
    with pytest.raises(InputError, match="within a step"):
        DDIMInverse(refine=1).step(grid, 1, noise(1, 4, 2, 2), noise(1, 4, 2, 2))


# The pipeline.


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return small_pipeline(sd2=True)


def with_sampler(sd: StableDiffusion, scheduler: Scheduler) -> StableDiffusion:
    return StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, scheduler, sd.defaults)


@pytest.mark.parametrize("schedule", [EPS, V], ids=["eps", "v"])
def test_a_batch_of_images_that_are_not_square(schedule: NoiseSchedule) -> None:
    """Whole pipelines with guidance return to the same latents, and the caller's sampler stays."""
    sd = with_sampler(small_pipeline(sd2=True), DDIM(schedule))
    with torch.no_grad():  # a random UNet is less smooth than a trained one
        sd.unet.conv_out.weight.mul_(0.1)
    pixels, prompts = noise(2, 3, 16, 24).clamp(-1, 1), ["a cat", "a dog"]
    call: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 2.0}
    with torch.no_grad():
        expected = sd.vae.encode(pixels).mean * 0.18215
    alone = invert(sd, pixels[1:], "a dog", refine=0, **call)
    errors = []
    for refine in (0, 5):
        latents = invert(sd, pixels, prompts, refine=refine, **call)
        if refine == 0:
            assert (alone - latents[1:]).abs().max() < 1e-4 * alone.abs().max()
        assert latents.shape == (2, 4, 8, 12)
        back = sd(prompts, latents=latents, output_type="latent", **call).images
        errors.append(float((back - expected).abs().max() / expected.abs().max()))
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 10
    assert isinstance(sd.scheduler, DDIM)


def test_refused_before_any_work(sd: StableDiffusion) -> None:
    picture = torch.zeros(1, 3, 16, 24)
    other = small_pipeline()  # PNDM
    calls: list[object] = []
    handles = [each.register_forward_pre_hook(lambda *args: calls.append(args)) for each in (sd.unet, sd.text_encoder)]
    sample = with_sampler(sd, DDIM(NoiseSchedule(prediction_type="sample")))
    for pipeline, arguments, message in (
        (other, {}, "only DDIM can be inverted, but this model uses PNDM"),
        (with_sampler(sd, replace(sd.scheduler, eta=0.5)), {}, "eta 0"),
        (with_sampler(sd, replace(sd.scheduler, clip_sample=True)), {}, "clip"),
        (sample, {}, "predicts x0"),
        (sd, {"image": "cat.png"}, "image is str"),
        (sd, {"image": torch.zeros(1, 3, 15, 24)}, "24 x 15, expected 1"),
        (sd, {"image": torch.zeros(2, 3, 16, 24)}, "2 image"),
        (sd, {"prompt": ["a cat", "a dog"]}, "expected 2"),
        (sd, {"prompt": None}, "prompt is NoneType"),
        (sd, {"num_inference_steps": 0}, "steps"),
        (sd, {"guidance_scale": "1"}, "guidance_scale"),
        (sd, {"refine": -1}, "refine"),
        (small_pipeline(sd2=True, in_channels=9), {}, "inpainting model"),
    ):
        with pytest.raises(InputError, match=message):
            invert(pipeline, **{"image": picture, "prompt": "a cat", **arguments})
    for handle in handles:
        handle.remove()
    assert not calls


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_embedded_model_returns_to_the_image(count: int) -> None:
    """More than 30 dB with 50 steps at guidance 1."""
    from minisd.sticker.evaluation.inversion import measure_inversion

    back = measure_inversion(weights_loader.load("sticker"), count, seed=1)
    assert back.worst_psnr > 30
    assert back.mean_psnr > 34
    assert back.mean_psnr < 60  # measured on pixels, not on latents
