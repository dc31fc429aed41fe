"""A sigmoid noise schedule."""

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import uniform, whole

TEXT = """
The share of the image in the variance at each of `steps` timesteps, by a sigmoid (Jabri et al. 2022):

u = (i + 1) / steps for the timesteps i = 0, 1, ..., steps - 1
s(u) = sigmoid((start + u (end - start)) / tau)
alpha_bar_i = (s(1) - s(u)) / (s(1) - s(0)), and where that is less than `least`, `least`.

start < end, tau > 0, 0 < least < 1: numbers. Compute in float64 -> (steps,), float64.
"""


def sigmoid_alpha_bars(steps: int, start: float, end: float, tau: float, least: float) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    start, end, tau = (round(float(uniform(seed=k, low=low, high=low + 2)), 3) for k, low in enumerate((-4, 1, 0.3)))
    return [
        Case("from -3 to 3", (1000, -3.0, 3.0, 1.0, 1e-4)),
        Case("a large tau", (7, 0.0, 3.0, 1.7, 1e-9)),
        Case("a least share that is reached early", (20, -3.0, 3.0, 0.7, 0.1)),
        Case("drawn", (whole(11, 60, seed=4), start, end, tau, 1e-5)),
    ]


TASK = Exercise(
    number=101,
    name="sigmoid_alpha_bars",
    title="A sigmoid noise schedule",
    level=2,
    minutes=15,
    notebook="05",
    task=TEXT,
    reference=sigmoid_alpha_bars,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "At u = 0 nothing is lost, at u = 1 everything; is it so in yours?",
        "The first timestep has u = 1 / steps, not 0.",
        "torch.arange(..., dtype=torch.float64) keeps everything in float64; clamp comes last.",
    ),
    rtol=1e-6,
    atol=1e-9,
)
