"""The schedulers of minisd.course equal the reference: attributes, loops, repeated steps."""

from typing import Any

import diffusers
import pytest
import torch
from support.course_cells import SCHEDULE, close

from minisd import course
from minisd.course.schedulers import wrap_scheduler
from minisd.errors import InputError
from minisd.schedulers import DDIM, Heun, Scheduler

NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]
NOISY = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler")  # use noise at each step


def toy(x: torch.Tensor, t: Any) -> torch.Tensor:
    return x * float(t) / (float(t) + 1) + 0.1


def run(scheduler: Any, steps: int = 8, previews: int = 0, cast: bool = False) -> list[torch.Tensor]:
    """The loop of the courses over a toy model; each step is previewed `previews` times before it is made."""
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(steps)
    if cast:
        scheduler.timesteps = scheduler.timesteps.to(torch.float32)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    states = []
    for t in scheduler.timesteps:
        output = toy(scheduler.scale_model_input(x, t), t)
        for _ in range(previews):
            scheduler.step(output, t, x)
        x = step(scheduler, output, t, x, generator)
        states.append(x)
    return states


def step(scheduler: Any, output: torch.Tensor, t: Any, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return scheduler.step(
        output, t, x, **({"generator": generator} if type(scheduler).__name__ in NOISY else {})
    ).prev_sample


@pytest.mark.parametrize("name", NAMES)
def test_a_run_equals_the_reference(name: str) -> None:
    mine, reference = (getattr(lib, name)(**SCHEDULE) for lib in (course, diffusers))
    for one, other in zip(run(mine), run(reference), strict=True):
        close(one, other)
    assert torch.equal(mine.timesteps.float(), reference.timesteps.float())
    assert float(mine.init_noise_sigma) == pytest.approx(float(reference.init_noise_sigma), rel=1e-5)
    close(mine.betas, reference.betas, 1e-6)
    close(mine.alphas_cumprod, reference.alphas_cumprod, 1e-5)
    assert mine.config.num_train_timesteps == mine.config["num_train_timesteps"] == mine.num_train_timesteps == 1000
    assert len(mine) == len(reference)
    assert mine.config.beta_schedule == reference.config.beta_schedule
    assert repr(mine).startswith(name)


@pytest.mark.parametrize("model", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_equals_the_first(name: str, model: dict[str, Any]) -> None:
    """Also with timesteps of another dtype, and in minisd's own loop."""
    scheduler = getattr(course, name)(**SCHEDULE, **model)
    first = run(scheduler)
    for again in (run(scheduler), run(scheduler, cast=True)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    core, grid = scheduler.core, scheduler.core.grid(8)
    x, memory = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * grid.init_noise_sigma, None
    generator = torch.Generator().manual_seed(1)
    for i, t in enumerate(grid.timesteps):
        output = toy(core.scale_input(grid, i, x), t)
        x, _, memory = core.step(grid, i, x, output, memory, lambda: torch.randn(2, 4, 6, 6, generator=generator))
        assert torch.equal(x, first[i])


def test_a_loop_without_a_new_run() -> None:
    """A run from the first timestep again, without set_timesteps, drops the history."""
    scheduler = course.LMSDiscreteScheduler(**SCHEDULE)
    first = run(scheduler, steps=5)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        assert torch.equal(x, first[i])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOISY])
def test_a_preview_changes_nothing(name: str) -> None:
    """The repeated step of older copies of the Deep Dive leaves the run bit-equal."""
    scheduler = getattr(course, name)(**SCHEDULE)
    plain = run(scheduler)
    for previews in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(plain, run(scheduler, previews=previews), strict=True))


def test_a_repeated_step_with_other_latents_replaces_the_first() -> None:
    """As in loss guidance: preview x, change x, step from the changed x."""
    results = []
    for preview in (False, True):
        scheduler = course.LMSDiscreteScheduler(**SCHEDULE)
        scheduler.set_timesteps(6)
        x = torch.ones(1, 4, 4, 4) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = toy(scheduler.scale_model_input(x, t), t)
            if preview:
                scheduler.step(output, t, x)
            x = scheduler.step(output, t, x * 0.97).prev_sample
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_add_noise(name: str) -> None:
    """At one timestep of the run, or one for each image, as whole numbers or floats."""
    mine, reference = (getattr(lib, name)(**SCHEDULE) for lib in (course, diffusers))
    x, noise = (torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for scheduler in (mine, reference):
        scheduler.set_timesteps(15)
    for places in ([10], [3, 14, 0]):
        got = mine.add_noise(x, noise, torch.tensor([mine.timesteps[i] for i in places]).to(torch.float32))
        times = torch.stack([reference.timesteps[i] for i in places])
        close(got, reference.add_noise(x, noise, times))
    with pytest.raises(InputError, match="2 timesteps for a batch of 3"):
        mine.add_noise(x, noise, mine.timesteps[:2])


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("t", [torch.tensor([0, 999]), torch.tensor([500]), torch.tensor(3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_velocity(name: str, t: torch.Tensor, dtype: torch.dtype) -> None:
    """One timestep, or one for each image of the batch."""
    x0, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    options = {**SCHEDULE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    mine, expected = (getattr(lib, name)(**options).get_velocity(x0, noise, t) for lib in (course, diffusers))
    close(mine, expected, 1e-5)
    assert mine.dtype == expected.dtype == dtype


def test_a_velocity_outside_of_the_training() -> None:
    x = torch.ones(2, 1, 2, 2)
    for t in (torch.tensor([0, 1000]), torch.tensor([1, 2, 3])):
        with pytest.raises(InputError):
            course.DDPMScheduler().get_velocity(x, x, t)


def test_before_set_timesteps() -> None:
    """A new scheduler accepts every timestep of the training."""
    x, noise = torch.ones(2, 4, 4, 4), torch.full((2, 4, 4, 4), 2.0)
    times = torch.tensor([7, 999])
    for name in ("DDPMScheduler", "LMSDiscreteScheduler"):
        mine, reference = (getattr(lib, name)(**SCHEDULE) for lib in (course, diffusers))
        assert torch.equal(mine.timesteps.float(), reference.timesteps.float())
        close(mine.add_noise(x, noise, times), reference.add_noise(x, noise, times))


def test_the_printed_sigmas() -> None:
    scheduler = course.LMSDiscreteScheduler(**SCHEDULE)
    scheduler.set_timesteps(15)
    printed = "14.6146 9.6826 6.6780 4.7746 3.5221 2.6666 2.0606 1.6156 1.2768 1.0097 .7913 .6056 .4397 .2780 .0292 0."
    assert torch.allclose(scheduler.sigmas, torch.tensor([float(each) for each in printed.split()]), atol=6e-5)
    times = torch.tensor([999, 927.6429, 856.2857, 784.9286])
    assert torch.allclose(scheduler.timesteps[:4], times, atol=6e-5)
    assert scheduler.init_noise_sigma == pytest.approx(14.6146, abs=6e-5)


def test_eta() -> None:
    mine, reference = course.DDIMScheduler(**SCHEDULE), diffusers.DDIMScheduler(**SCHEDULE)
    x, output = torch.ones(1, 4, 4, 4), torch.full((1, 4, 4, 4), 0.3)
    results = []
    for scheduler in (mine, reference):
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(3)
        results.append(scheduler.step(output, scheduler.timesteps[2], x, eta=0.7, generator=generator).prev_sample)
    close(*results)
    with pytest.raises(InputError, match="only DDIM"):
        course.PNDMScheduler().step(output, 999, x, eta=0.5)


def test_step_returns() -> None:
    scheduler = course.DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(10)
    out = scheduler.step(torch.ones(1, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 1, 2, 2))
    pair = scheduler.step(torch.ones(1, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 1, 2, 2), return_dict=False)
    assert torch.equal(out["prev_sample"], out[0])
    assert torch.equal(out.prev_sample, pair[0])
    assert torch.equal(out.pred_original_sample, pair[1])


def test_from_config() -> None:
    """From another sampler's config: the model's values and the new sampler's spacing; from a dict: its values."""
    pndm = course.PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction")
    lms = course.LMSDiscreteScheduler.from_config(pndm.config)
    assert lms.config.prediction_type == "v_prediction"
    assert lms.config.timestep_spacing == "linspace"
    assert course.DDIMScheduler.from_config(pndm.config).config.clip_sample is False
    config = {**SCHEDULE, "steps_offset": 1, "clip_sample": False, "_class_name": "X", "no_such_key": 3}
    assert course.DDIMScheduler.from_config(config).core == DDIM(set_alpha_to_one=True)
    assert course.PNDMScheduler.from_config(pndm.config).core == pndm.core
    with pytest.raises(InputError, match="has no beta_stat"):
        course.LMSDiscreteScheduler(beta_stat=0.1)


def test_from_pretrained(model: str) -> None:
    ours = course.EulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
    theirs = diffusers.DDIMScheduler.from_pretrained(model, subfolder="scheduler")
    assert ours.config.prediction_type == theirs.config.prediction_type
    assert ours.config.beta_end == theirs.config.beta_end
    with pytest.raises(InputError, match="subfolder"):
        course.DDIMScheduler.from_pretrained(model, subfolder="unet")


def test_wrong_timesteps() -> None:
    scheduler = course.LMSDiscreteScheduler(**SCHEDULE)
    scheduler.set_timesteps(10)
    with pytest.raises(InputError, match=r"timestep is 5.*10 steps.*set_timesteps"):
        scheduler.step(torch.ones(1, 1, 2, 2), 5, torch.ones(1, 1, 2, 2))
    with pytest.raises(InputError, match="whole numbers"):
        course.DDIMScheduler().add_noise(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 3.5)
    with pytest.raises(InputError):
        scheduler.set_timesteps(0)


def test_the_names_are_the_official_ones() -> None:
    for name, kind in Scheduler.samplers.items():
        if hasattr(course, name):
            assert getattr(course, name).kind is kind
    wrapped = wrap_scheduler(Heun())
    assert type(wrapped) is course.HeunDiscreteScheduler
    assert wrap_scheduler(wrapped) is wrapped
    with pytest.raises(InputError, match="expected one of DDIMScheduler"):
        wrap_scheduler("LMS")  # type: ignore[arg-type]
