"""Whole runs against the reference, by a fake model; and what a pure step promises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.scheduler_oracle import (
    adds_noise,
    drawing,
    fake_model,
    largest_difference,
    oracle,
    our_run,
    start,
    their_run,
)
from torch import Tensor

from minisd.errors import InputError
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    LMS,
    PNDM,
    DDIMInverse,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    NoiseSchedule,
    Scheduler,
    UniPC,
)
from minisd.schedulers.lms import lms_coefficients

SD = NoiseSchedule()
COUNTS = {
    "leading": (1, 2, 3, 5, 7, 16, 20, 30, 50, 61, 100),
    "linspace": (1, 2, 7, 20),
    "trailing": (1, 2, 7, 20),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
VARIANTS = [
    DDPM(),
    DDPM(clip_sample=True),
    DDIM(),
    DDIM(clip_sample=True, clip_sample_range=0.7, set_alpha_to_one=True),
    PNDM(),
    PNDM(set_alpha_to_one=True),
    PNDM(skip_prk_steps=False),
    LMS(),
    LMS(use_karras_sigmas=True),
    Euler(),
    Euler(use_karras_sigmas=True),
    EulerAncestral(),
    Heun(),
    Heun(use_karras_sigmas=True),
    DPMSolverMultistep(),
    DPMSolverMultistep(use_karras_sigmas=True),
    DPMSolverMultistep(algorithm_type="sde-dpmsolver++"),
    DPMSolverMultistep(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    UniPC(),
    UniPC(use_karras_sigmas=True),
    LCM(),
    LCM(clip_sample=True, original_inference_steps=100),
]


def name_of(sampler: Scheduler) -> str:
    changed = [f"{k}={v}" for k, v in vars(sampler).items() if v != getattr(type(sampler)(), k)]
    return "-".join([type(sampler).__name__, *changed])


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", VARIANTS, ids=name_of)
def test_runs_against_the_reference(sampler: Scheduler, prediction: str, spacing: str) -> None:
    if prediction == "sample" and isinstance(sampler, PNDM | EulerAncestral | Heun):
        pytest.skip("the reference lacks prediction_type sample here")
    sampler = replace(sampler, schedule=replace(SD, prediction_type=prediction), timestep_spacing=spacing)
    seed = 3 if adds_noise(sampler) else None
    for n in COUNTS[spacing]:
        if n < 4 and not getattr(sampler, "skip_prk_steps", True):
            continue
        if isinstance(sampler, LCM) and n > 50:
            continue
        # the same float64 schedule on both sides: the formulas are equal (but LCM's weights, float32 there)
        exact = their_run(oracle(sampler, exact=True), n, start(), sampler.grid(n), seed)
        assert largest_difference(our_run(sampler, n, start(), seed or 0), exact) < (
            1e-6 if isinstance(sampler, LCM) else 1e-9
        ), n
        if n not in (1, 5, 7, 50):
            continue
        # as the reference is, with its float32 schedule
        single = start().float()
        theirs = their_run(oracle(sampler), n, single, seed=seed)
        assert largest_difference(our_run(sampler, n, single, seed or 0), theirs) < 1e-4, n


def test_ddim_begins_from_pure_noise_with_all_of_its_noise() -> None:
    """What is left beside the new noise is 0 then, and was rounded below it for some numbers of steps."""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    sampler = DDIM(schedule, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True, eta=1.0)
    for n in range(1, 101):
        x = sampler.step(sampler.grid(n), 0, start(), start(), None, lambda: start()).x_prev
        assert torch.isfinite(x).all(), n


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_noise(eta: float, prediction: str) -> None:
    schedule = replace(SD, prediction_type=prediction)
    for spacing in ("leading", "linspace", "trailing"):
        sampler = DDIM(schedule, eta=eta, timestep_spacing=spacing)
        for n in (1, 5, 50):
            theirs = their_run(oracle(sampler, exact=True), n, start(), seed=5, eta=eta)
            assert largest_difference(our_run(sampler, n, start(), seed=5), theirs) < 1e-9
    still = our_run(DDIM(schedule), 5, start())
    assert largest_difference(our_run(sampler, 5, start(), seed=5), still) > 0.01


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=0.7), DDPM()], ids=name_of)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(sampler: Scheduler, prediction: str) -> None:
    schedule = replace(SD, rescale_betas_zero_snr=True, prediction_type=prediction)
    sampler = replace(sampler, schedule=schedule, timestep_spacing="trailing")
    step = {"eta": sampler.eta} if isinstance(sampler, DDIM) else {}
    for n in (1, 2, 5, 20, 50):
        assert sampler.grid(n).timesteps[0] == 999
        theirs = their_run(oracle(sampler, exact=True), n, start(), seed=1, **step)
        assert largest_difference(our_run(sampler, n, start(), seed=1), theirs) < 1e-9
        single = start().float()
        theirs = their_run(oracle(sampler), n, single, seed=1, **step)
        assert largest_difference(our_run(sampler, n, single, seed=1), theirs) < 1e-4


@pytest.mark.parametrize("sampler", VARIANTS, ids=name_of)
def test_every_sampler_survives_zero_terminal_snr(sampler: Scheduler) -> None:
    schedule = replace(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    for spacing in ("trailing", "linspace"):
        sampler = replace(sampler, schedule=schedule, timestep_spacing=spacing)
        for n in (1, 4, 20):
            if n > 3 or getattr(sampler, "skip_prk_steps", True):
                assert all(
                    torch.isfinite(x).all() and torch.isfinite(x0).all() for x, x0 in our_run(sampler, n, start())
                )


def test_heun_leaves_pure_noise_by_euler() -> None:
    """From sigma 4096 the mean of two slopes, times the step, is far off: images of twenty steps were broken."""
    schedule = replace(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    heun, euler = (our_run(kind(schedule), 20, start()) for kind in (Heun, Euler))
    assert torch.equal(heun[0][0], euler[0][0])
    assert torch.equal(heun[1][0], euler[0][0])
    assert not torch.equal(heun[3][0], heun[2][0])


@pytest.mark.parametrize("sampler", VARIANTS, ids=name_of)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_single_steps_in_float32(sampler: Scheduler, spacing: str) -> None:
    """Each step from the reference's own state, so that nothing adds up."""
    sampler = replace(sampler, timestep_spacing=spacing)
    n, x = 20, start().float()
    reference, grid, memory = oracle(sampler), sampler.grid(n), None
    reference.set_timesteps(n)
    x = x * float(reference.init_noise_sigma)
    for i, t in enumerate(reference.timesteps):
        output = fake_model(reference.scale_model_input(x, t), t)
        ours = sampler.step(grid, i, x, output, memory, drawing(x, i))
        step = {"generator": seeded(i)} if adds_noise(sampler) else {}
        x, memory = reference.step(output, t, x, **step).prev_sample, ours.memory
        assert float((ours.x_prev - x).abs().max() / x.abs().max()) < 1e-5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sampler", "n", "total", "mean"),
    [
        (DDIM(clip_sample=True, set_alpha_to_one=True), 10, 172.0067, 0.2240),
        (PNDM(skip_prk_steps=False), 10, 198.1318, 0.2580),
        (LMS(), 10, 1006.388, 1.3104),
        (DDPM(clip_sample=True), 1000, 258.961, 0.3372),
    ],
    ids=lambda value: type(value).__name__,
)
def test_full_toy_loops(sampler: Scheduler, n: int, total: float, mean: float) -> None:
    """course.md 4.2: the numbers that the reference's own tests print."""
    schedule = NoiseSchedule(1e-4, 0.02, "linear", num_train_timesteps=1100 if isinstance(sampler, LMS) else 1000)
    sampler = replace(sampler, schedule=schedule, steps_offset=0)
    grid, memory, generator = sampler.grid(n), None, seeded(0)
    x = torch.arange(768).reshape(3, 8, 8, 4).div(768).permute(3, 0, 1, 2) * grid.init_noise_sigma
    for i, t in enumerate(grid.timesteps):
        x = sampler.scale_input(grid, i, x)  # these loops feed the scaled input to the step
        x, _, memory = sampler.step(grid, i, x, x * t / (t + 1), memory, drawing(x, generator))
    assert float(x.abs().sum()) == pytest.approx(total, rel=2e-5)
    assert float(x.abs().mean()) == pytest.approx(mean, abs=6e-5)


def test_lms_coefficients() -> None:
    """course.md 4.2: 50 steps, newest derivative first."""
    expected = {
        0: [-1.67787],
        1: [-2.06746, 0.62233],
        2: [-2.18172, 1.27188, -0.33889],
        3: [-2.16580, 1.81561, -0.90618, 0.17382],
        10: [-0.88850, 0.77300, -0.39963, 0.07958],
        48: [-0.46236, 0.83695, -0.68478, 0.20002],
    }
    sigmas = LMS().grid(50).sigmas
    for i, values in expected.items():
        np.testing.assert_allclose(lms_coefficients(sigmas, i, len(values)), values, rtol=2e-5, atol=6e-6)
        assert sum(lms_coefficients(sigmas, i, len(values))) == pytest.approx(sigmas[i + 1] - sigmas[i])


@pytest.mark.parametrize("first", [0, 1, 7, 17, 19])
@pytest.mark.parametrize("sampler", VARIANTS, ids=name_of)
def test_a_perfect_model_leads_to_the_image(sampler: Scheduler, first: int) -> None:
    """With the true noise as output, a run from any start ends at the image, whatever the sampler."""
    if getattr(sampler, "clip_sample", False):
        sampler = replace(sampler, clip_sample_range=100.0)
    grid, memory = sampler.grid(20, start=first), None
    image, noise = start(), torch.randn(start().shape, generator=seeded(1)).double()
    x = sampler.add_noise(grid, 0, image, noise)
    for i in range(len(grid)):
        if adds_noise(sampler):  # the noise that is truly in x, fresh at each step
            noise = (x - sampler.add_noise(grid, i, image, 0 * noise)) / sampler.add_noise(
                grid, i, 0 * image, 0 * noise + 1
            )
        x, x0, memory = sampler.step(grid, i, x, noise, memory, drawing(x, i))
        assert torch.allclose(x0, image, atol=1e-5 if isinstance(sampler, LCM) else 1e-8)  # LCM: a share of x itself
    final = SD.alpha_bar(0)
    if isinstance(sampler, LCM):
        assert torch.allclose(x, image, atol=1e-5)
    elif getattr(sampler, "set_alpha_to_one", True):
        assert torch.allclose(x, image, atol=1e-8)
    else:
        assert torch.allclose(x, final**0.5 * image + (1 - final) ** 0.5 * noise, atol=1e-8)


@pytest.mark.parametrize("sampler", [*VARIANTS, DDIM(eta=1.0)], ids=name_of)
def test_steps_are_pure(sampler: Scheduler) -> None:
    def run(preview: bool) -> list[Tensor]:
        grid, memory, trace = sampler.grid(12), None, []
        x = start().float() * grid.init_noise_sigma
        buffer = torch.empty_like(x)  # a model that reuses its output buffer, as CUDA graphs do
        for i, t in enumerate(grid.timesteps):
            buffer = torch.empty_like(x) if preview else buffer
            buffer.copy_(fake_model(sampler.scale_input(grid, i, x), t))
            given = x.clone(), buffer.clone()
            if preview:
                other = sampler.step(grid, i, x, buffer, memory, drawing(x, i))
            step = sampler.step(grid, i, x, buffer, memory, drawing(x, i))
            assert torch.equal(x, given[0])
            assert torch.equal(buffer, given[1])
            if preview:
                assert torch.equal(other.x_prev, step.x_prev)
                assert torch.equal(other.x0, step.x0)
            memory, before = step.memory, x
            x = step.x_prev
            if not preview:
                before.fill_(torch.nan)  # the caller may reuse its tensors: memory holds copies
            trace.append(x.clone())
        return trace

    for a, b in zip(run(preview=False), run(preview=True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampler", [*VARIANTS, DDIM(eta=1.0)], ids=name_of)
def test_half_precision_is_computed_in_float32(sampler: Scheduler, dtype: torch.dtype) -> None:
    def ones() -> Tensor:
        return torch.ones(start().shape)

    grid, memory, memory32 = sampler.grid(8), None, None
    x = (start() * grid.init_noise_sigma).to(dtype)
    for i, t in enumerate(grid.timesteps):
        output = fake_model(x.float(), t).to(dtype)
        step = sampler.step(grid, i, x, output, memory, ones)
        wide = sampler.step(grid, i, x.float(), output.float(), memory32, ones)
        assert step.x_prev.dtype == step.x0.dtype == sampler.scale_input(grid, i, x).dtype == dtype
        assert torch.equal(step.x_prev, wide.x_prev.to(dtype))
        x, memory, memory32 = step.x_prev, step.memory, wide.memory


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [
        (DDIM(), 0),
        (DDIM(eta=0.1), 6),
        (DDPM(), 6),
        (DDPM(steps_offset=0), 5),
        (LMS(), 0),
        (PNDM(), 0),
        (Euler(), 0),
        (EulerAncestral(), 5),
        (Heun(), 0),
        (DPMSolverMultistep(), 0),
        (DPMSolverMultistep(algorithm_type="sde-dpmsolver++"), 5),
        (UniPC(), 0),
        (LCM(), 5),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Scheduler) else str(value),
)
def test_noise_is_drawn_only_where_needed(sampler: Scheduler, draws: int) -> None:
    count = 0

    def randn() -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros(2, 4, 3, 5)

    grid, x, memory = sampler.grid(6), start(), None
    for i in range(len(grid)):
        x, _, memory = sampler.step(grid, i, x, 0.1 * x, memory, randn)
    assert count == draws


@pytest.mark.parametrize("sampler", [*VARIANTS, DDIMInverse(refine=1)], ids=name_of)
def test_the_noise_level_is_the_standard_deviation_of_added_noise(sampler: Scheduler) -> None:
    for first in (0, 3):
        grid = sampler.grid(8, first)
        for i in range(len(grid) + 1):
            added = sampler.add_noise(grid, i, torch.zeros(1), torch.ones(1))
            assert sampler.noise_level(grid, i) == added.item()
    assert sampler.noise_level(grid, 0) > 0


def test_wrong_arguments_of_a_step() -> None:
    sampler, x = DDIM(eta=0.5), start()
    grid = sampler.grid(5)
    with pytest.raises(InputError, match="randn"):
        sampler.step(grid, 0, x, x)
    with pytest.raises(InputError, match="shape"):
        sampler.step(grid, 0, x, x, None, lambda: torch.zeros(1))
    with pytest.raises(InputError, match="shape"):
        sampler.step(grid, 0, x, torch.cat([x, x], 1))
    for i in (-1, 5):
        with pytest.raises(InputError, match=r"0\.\.4"):
            sampler.step(grid, i, x, x)
    for within in (PNDM(), Heun()):
        with pytest.raises(InputError, match="grid"):
            within.step(within.grid(5), 1, x, x)


def test_from_config_runs_of_official_models(shared_data: Path) -> None:
    for model in ("sd15", "sd21_768v", "sdxl_base"):
        config = json.loads((shared_data / "configs" / model / "scheduler.json").read_text())
        facts = json.loads((shared_data / "schedulers" / f"from_config_{model}.json").read_text())
        for name, sampler in Scheduler.samplers.items():
            ours = sampler.from_config(config)
            entry = facts[name]
            for n in (1, 2, 4, 8) if sampler is LCM else (20, 50):
                np.testing.assert_allclose(ours.grid(n).timesteps, entry[str(n)]["timesteps"], rtol=2e-7)
                if "sigmas" in entry[str(n)]:
                    np.testing.assert_allclose(ours.grid(n).sigmas, entry[str(n)]["sigmas"], rtol=2e-5)
            for key, value in ours.to_config().items():
                if key in entry["effective_config"]:
                    assert entry["effective_config"][key] == value, (model, sampler, key)
