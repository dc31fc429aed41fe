"""The noise schedule against the reference, and its algebra against itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minisd.errors import InputError
from minisd.schedulers import DDIM, LMS, NoiseSchedule

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "schedulers_official.json").read_text())
SD = NoiseSchedule()
LINEAR = NoiseSchedule(1e-4, 0.02, "linear")
COSINE = NoiseSchedule(beta_schedule="squaredcos_cap_v2")
ZERO = replace(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction")


def test_known_values() -> None:
    facts = OFFICIAL["alpha_bars"]
    for schedule, name in ((SD, "sd"), (NoiseSchedule(1e-4, 0.02), "x4"), (LINEAR, "linear")):
        np.testing.assert_allclose(schedule.alpha_bars[facts["index"]], facts[name], rtol=3e-6)
        assert schedule.betas.dtype == schedule.alpha_bars.dtype == schedule.sigmas.dtype == torch.float64
    assert SD.sigmas[0] == pytest.approx(0.0291675, rel=2e-5)
    assert SD.sigmas[-1] == pytest.approx(14.614647, rel=1e-6)
    np.testing.assert_allclose(
        NoiseSchedule(0.001, 0.004, "linear").alpha_bars[[0, 499, 999]],
        [0.999, 0.416680, 0.0817976],
        rtol=2e-6,
    )
    np.testing.assert_allclose(COSINE.alpha_bars[[0, 499, 999]], [0.99995870, 0.49384347, 2.4287e-9], rtol=5e-5)
    given = NoiseSchedule(trained_betas=(0.1, 0.2, 0.5), num_train_timesteps=3)
    np.testing.assert_allclose(given.alpha_bars, [0.9, 0.72, 0.36], rtol=1e-15)


@pytest.mark.parametrize("schedule", [SD, LINEAR, COSINE, ZERO, replace(SD, num_train_timesteps=1100)])
def test_tables_against_the_reference(schedule: NoiseSchedule) -> None:
    from support.scheduler_oracle import oracle

    theirs = oracle(DDIM(schedule))
    # the reference's float32 shows where alpha_bar is tiny: 1e-6 absolute, and 1e-4 of itself
    np.testing.assert_allclose(schedule.alpha_bars, theirs.alphas_cumprod, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(schedule.betas, theirs.betas, rtol=1e-3, atol=1e-6)


def test_zero_terminal_snr() -> None:
    assert ZERO.alpha_bars[-1] == 0
    assert ZERO.betas[-1] == 1
    assert ZERO.alpha_bars[0] == pytest.approx(SD.alpha_bar(0), rel=1e-12)
    assert torch.isfinite(ZERO.sigmas).all()
    assert ZERO.sigmas[-1] == pytest.approx(4096, rel=1e-6)
    x, v = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    x0, eps = ZERO.x0_and_eps(x, v, 0.0)
    assert torch.equal(x0, -v)
    assert torch.equal(eps, x)
    with pytest.raises(InputError, match="v_prediction"):
        replace(ZERO, prediction_type="epsilon").x0_and_eps(x, v, 0.0)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("schedule", [SD, ZERO])
def test_noising_against_the_reference(schedule: NoiseSchedule, dtype: torch.dtype, close: float) -> None:
    from support.scheduler_oracle import oracle

    theirs = oracle(DDIM(schedule), exact=True)
    x0, noise = torch.randn(2, 4, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    t = torch.tensor([0, 10, 500, 999])
    assert torch.allclose(schedule.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=close, atol=close)
    assert torch.allclose(schedule.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=close, atol=close)
    one_by_one = torch.cat([schedule.add_noise(x0[i : i + 1], noise[i : i + 1], int(t[i])) for i in range(4)])
    assert torch.equal(schedule.add_noise(x0, noise, t), one_by_one)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 300, 999])
def test_target_and_its_inverse(prediction_type: str, t: int) -> None:
    schedule = replace(SD, prediction_type=prediction_type)
    x0, noise = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 4, 3, 5).double()
    x = schedule.add_noise(x0, noise, t)
    found = schedule.x0_and_eps(x, schedule.target(x0, noise, t), schedule.alpha_bar(t))
    assert torch.allclose(found[0], x0, rtol=1e-11, atol=1e-11)
    assert torch.allclose(found[1], noise, rtol=1e-11, atol=1e-11)


def test_dtypes_and_callers_tensors() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x0, noise = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, 3, 4, 4).to(dtype)
        before = x0.clone(), noise.clone()
        t = torch.tensor([3, 700])
        for method in (SD.add_noise, SD.velocity):
            result = method(x0, noise, t)
            assert result.dtype == dtype
            if dtype in (torch.float16, torch.bfloat16):
                assert torch.equal(result, method(x0.float(), noise.float(), t).to(dtype))
        assert torch.equal(x0, before[0])
        assert torch.equal(noise, before[1])


@pytest.mark.parametrize(
    "t", [-1, 1000, torch.tensor([0, 1000]), torch.tensor([0, 1, 2]), 2.5, torch.tensor([1.0, 2.0]), True]
)
def test_wrong_timesteps(t: object) -> None:
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(InputError, match="timestep"):
        SD.add_noise(x, x, t)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_start", 0.0),
        ("beta_start", "0.1"),
        ("beta_end", float("nan")),
        ("beta_end", 1.0),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "eps"),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", True),
        ("num_train_timesteps", 10.0),
        ("trained_betas", (0.1, 0.2)),
        ("trained_betas", 0.1),
        ("rescale_betas_zero_snr", None),
    ],
)
def test_wrong_fields(field: str, value: object) -> None:
    with pytest.raises(InputError, match="beta" if field.startswith("beta_") else field):
        NoiseSchedule(**{field: value})  # type: ignore[arg-type]


def test_sigma_space_noise_and_input_scale() -> None:
    from support.scheduler_oracle import oracle

    sampler = LMS()
    grid, theirs = sampler.grid(15), oracle(sampler)
    x0, noise = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    for i in (0, 10, 14):
        theirs.set_timesteps(15)  # it remembers where it was
        t = theirs.timesteps[i : i + 1]
        assert torch.allclose(
            sampler.add_noise(grid, i, x0, noise), theirs.add_noise(x0, noise, t), rtol=2e-5, atol=2e-5
        )
        scaled = theirs.scale_model_input(x0, t[0])
        assert torch.allclose(sampler.scale_input(grid, i, x0), scaled, rtol=2e-5, atol=1e-6)
    grid = DDIM().grid(15)
    assert torch.equal(DDIM().add_noise(grid, 10, x0, noise), SD.add_noise(x0, noise, int(grid.timesteps[10])))
    assert DDIM().scale_input(grid, 3, x0) is x0
