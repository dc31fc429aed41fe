"""The measured orders of the samplers equal the theoretical ones."""

import pytest

from minisd.parity.sampler_order import convergence, error, order
from minisd.schedulers import DPMSolverMultistep, Euler, Scheduler


def test_order() -> None:
    assert order([10, 20, 40, 80], [1.0, 1.0, 0.25, 0.0625]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "expected"), [("Euler", 1), ("Heun", 2), ("DPMSolverMultistep", 2), ("UniPC", 3), ("LMS", 3.5)]
)
def test_each_sampler_has_its_order(name: str, expected: float) -> None:
    found = convergence(steps=(40, 56, 80, 112))["samplers"][name]
    assert found["order"] == pytest.approx(expected, abs=0.2)
    assert found["errors"] == sorted(found["errors"], reverse=True)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_error_falls_with_every_spacing(spacing: str) -> None:
    samplers: tuple[Scheduler, ...] = (Euler(timestep_spacing=spacing), DPMSolverMultistep(timestep_spacing=spacing))
    for sampler in samplers:
        assert error(sampler, 200) < 0.2 * error(sampler, 20) < 0.1
