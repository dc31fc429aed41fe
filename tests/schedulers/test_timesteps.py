"""Which timesteps a run visits: equal to the reference for every n, but where the reference is wrong."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import InputError
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    Scheduler,
    UniPC,
    validate_steps,
)
from minisd.schedulers.spacing import SPACINGS, spaced_timesteps

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "schedulers_official.json").read_text())
SAMPLERS = Scheduler.samplers
GRIDS = [("leading", 0), ("leading", 1), ("linspace", 1), ("trailing", 1)]


@pytest.mark.parametrize("key", OFFICIAL["spacings"])
def test_carried_facts(key: str) -> None:
    name, spacing, n, offset = key.split("/")
    grid = SAMPLERS[name](timestep_spacing=spacing, steps_offset=int(offset)).grid(int(n))
    facts = OFFICIAL["spacings"][key]
    np.testing.assert_allclose(grid.timesteps, facts["timesteps"], rtol=2e-7)
    np.testing.assert_allclose(grid.init_noise_sigma, facts.get("init_noise_sigma", 1.0), rtol=2e-5)
    if "sigmas" in facts:
        np.testing.assert_allclose(grid.sigmas, facts["sigmas"], rtol=2e-5)


@pytest.mark.parametrize("model", OFFICIAL["official"])
def test_official_configs(model: str) -> None:
    entry = OFFICIAL["official"][model]
    facts = entry["timesteps"]
    if isinstance(facts, str):
        facts = OFFICIAL["official"][facts]["timesteps"]
    scheduler = Scheduler.from_config(entry["config"])
    assert [scheduler.grid(n).timesteps.tolist() for n in (20, 50)] == facts
    assert scheduler.grid(20).timesteps.dtype == torch.int64


def test_course_numbers() -> None:
    def listed(sampler: Scheduler, n: int) -> list[float]:
        return sampler.grid(n).timesteps.tolist()

    assert listed(PNDM(), 3) == [667, 334, 334, 1]
    assert listed(PNDM(), 16)[:4] == [931, 869, 869, 807]
    assert len(listed(PNDM(), 16)) == 17
    assert listed(DDIM(), 3) == [667, 334, 1]
    assert listed(DDIM(), 30)[:4] == [958, 925, 892, 859]
    assert listed(DDIM(), 80)[-1] == 1
    assert listed(DDIM(steps_offset=0), 40) == list(range(975, -1, -25))
    np.testing.assert_allclose(listed(LMS(), 15)[:3], [999, 927.6429, 856.2857], atol=1e-4)
    fifteen = [14.6146, 9.6826, 6.6780, 4.7746, 3.5221, 2.6666, 2.0606, 1.6156]
    fifteen += [1.2768, 1.0097, 0.7913, 0.6056, 0.4397, 0.2780, 0.0292, 0]
    np.testing.assert_allclose(LMS().grid(15).sigmas, fifteen, atol=6e-5)
    seventy = LMS().grid(70).sigmas
    np.testing.assert_allclose(
        [seventy[i] for i in (1, 10, 20, 40, 60, 68, 69, 70)],
        [13.3974, 6.6102, 3.4634, 1.2427, 0.4118, 0.1174, 0.0292, 0],
        atol=6e-5,
    )
    np.testing.assert_allclose(LMS().grid(30).sigmas[1:4], [11.9176, 9.8142, 8.1585], atol=6e-5)
    assert LMS().grid(50).timesteps[10] == pytest.approx(795.1224, abs=1e-4)
    assert LMS().grid(50).sigmas[10] == pytest.approx(4.99886, rel=1e-5)


@pytest.mark.parametrize(("spacing", "offset"), GRIDS)
@pytest.mark.parametrize(
    "sampler",
    [DDPM, DDIM, PNDM, LMS, DPMSolverMultistep, UniPC, pytest.param("prk", id="PNDM-Runge-Kutta")],
    ids=lambda s: s.__name__,
)
def test_every_n_against_the_reference(sampler: type[Scheduler] | str, spacing: str, offset: int) -> None:
    from support.scheduler_oracle import TRAILING_BUGS, oracle

    if sampler == "prk":
        ours: Scheduler = PNDM(skip_prk_steps=False, timestep_spacing=spacing, steps_offset=offset)
    else:
        ours = sampler(timestep_spacing=spacing, steps_offset=offset)  # type: ignore[operator]
    theirs = oracle(ours)
    odd = set()
    for n in range(4 if sampler == "prk" else 1, 1001):  # its Runge-Kutta variant crashes below 4
        theirs.set_timesteps(n)
        grid = ours.grid(n)
        assert grid.timesteps.dtype == theirs.timesteps.dtype
        if not torch.equal(grid.timesteps, theirs.timesteps):
            odd.add(n)
        elif sampler is LMS:
            assert torch.allclose(torch.tensor(grid.sigmas), theirs.sigmas, rtol=2e-5, atol=0)
            assert grid.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=2e-5)
    if spacing == "trailing":
        assert odd == TRAILING_BUGS
    elif sampler in (DPMSolverMultistep, UniPC):  # it leaves the range at 999, and repeats timesteps at 1000
        assert odd == ({999, 1000} if (spacing, offset) == ("leading", 1) else {1000})
    else:
        assert odd == ({1000} if (spacing, offset) == ("leading", 1) else set())


def test_where_the_reference_is_wrong_we_are_right() -> None:
    from support.scheduler_oracle import TRAILING_BUGS, oracle

    assert len(TRAILING_BUGS) == 62
    ours = DDIM(timestep_spacing="trailing")
    theirs = oracle(ours)
    for n in TRAILING_BUGS:
        theirs.set_timesteps(n)
        assert theirs.timesteps.tolist() == [*ours.grid(n).timesteps.tolist(), -1]
    assert DDIM(steps_offset=1).grid(1000).timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(("spacing", "offset"), itertools.product(SPACINGS, (0, 1)))
def test_every_n_is_exact_unique_and_in_range(spacing: str, offset: int) -> None:
    for n in range(1, 1001):
        times = DDIM(timestep_spacing=spacing, steps_offset=offset).grid(n).timesteps
        assert len(times) == n
        assert (times[1:] < times[:-1]).all()
        assert times[0] <= 999
        assert times[-1] >= 0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SPACINGS), st.integers(1, 4000), st.data(), st.integers(0, 3))
def test_other_lengths_of_training(spacing: str, total: int, data: st.DataObject, offset: int) -> None:
    n = data.draw(st.integers(1, total))
    times = spaced_timesteps(spacing, n, total, offset)
    assert len(times) == n
    assert (np.diff(times.round()) < 0).all()
    assert times[-1] >= 0
    assert times[0] <= total - 1


@pytest.mark.parametrize("karras", OFFICIAL["karras"])
def test_karras(karras: str) -> None:
    grid, facts = LMS(use_karras_sigmas=True).grid(int(karras)), OFFICIAL["karras"][karras]
    np.testing.assert_allclose(grid.sigmas, facts["sigmas"], rtol=2e-5)
    np.testing.assert_allclose(grid.timesteps, facts["timesteps"], rtol=2e-4, atol=2e-3)


def test_a_later_start_of_heun_begins_with_a_whole_step() -> None:
    whole, tail = Heun().grid(30), Heun().grid(30, start=12)
    assert len(whole) == 59
    assert torch.equal(tail.timesteps, whole.timesteps[24:])
    assert tail.sigmas == whole.sigmas[24:]
    assert tail.init_noise_sigma == whole.init_noise_sigma


def test_an_lcm_has_as_many_steps_as_were_distilled() -> None:
    assert LCM().grid(4).timesteps.tolist() == [999, 759, 499, 259]
    with pytest.raises(InputError, match="50 steps"):
        LCM().grid(51)


@pytest.mark.parametrize("sampler", [DDPM, DDIM, LMS, Euler, EulerAncestral, DPMSolverMultistep, UniPC])
def test_a_later_start_is_the_tail_of_the_run(sampler: type[Scheduler]) -> None:
    whole, tail = sampler().grid(30), sampler().grid(30, start=12)
    assert torch.equal(tail.timesteps, whole.timesteps[12:])
    assert (tail.source, tail.previous) == (whole.source[12:], whole.previous[12:])
    assert tail.sigmas == whole.sigmas[12:]


def test_a_later_start_of_pndm_repeats_its_own_second_timestep() -> None:
    assert PNDM().grid(50, start=47).timesteps.tolist() == [41, 21, 21, 1]
    assert PNDM().grid(50, start=49).timesteps.tolist() == [1]
    assert len(PNDM(skip_prk_steps=False).grid(50, start=48)) == 5


@pytest.mark.parametrize("n", [0, -1, 2.5, 3.0, "3", True, False, float("nan"), None, 1001, 2000, [3]])
def test_wrong_numbers_of_steps(n: object) -> None:
    with pytest.raises(InputError, match=r"1\.\.1000"):
        validate_steps(n)
    for sampler in SAMPLERS.values():
        with pytest.raises(InputError, match=r"1\.\.1000"):
            sampler().grid(n)  # type: ignore[arg-type]


def test_right_numbers_of_steps() -> None:
    assert [validate_steps(n) for n in (1, 1000, np.int64(7), torch.tensor(8))] == [1, 1000, 7, 8]
    with pytest.raises(InputError, match=r"1\.\.50\b"):
        validate_steps(51, 50)


@pytest.mark.parametrize("start", [-1, 10, 1.0, True, None])
def test_wrong_starts(start: object) -> None:
    for sampler in SAMPLERS.values():
        with pytest.raises(InputError, match=r"0\.\.9"):
            sampler().grid(10, start=start)  # type: ignore[arg-type]


def test_shared_facts(shared_data: Path) -> None:
    facts = json.loads((shared_data / "schedulers" / "spacing_grid.json").read_text())
    seen = 0
    for key, value in facts.items():
        name, spacing, n, offset = key.split("/")
        if name in SAMPLERS:
            offset = int(offset.removeprefix("offset"))
            grid = SAMPLERS[name](timestep_spacing=spacing, steps_offset=offset).grid(int(n))
            np.testing.assert_allclose(grid.timesteps, value["timesteps"], rtol=2e-7)
            seen += 1
    assert seen == 324
