"""A noise schedule for another size."""

from torch import Tensor

from minisd.exercises.exercise import Case, Exercise
from minisd.exercises.inputs import uniform, whole

TEXT = """
A noise schedule for images of another size (Hoogeboom et al. 2023): in a larger image neighbours average the
noise away, so it needs more. The signal-to-noise ratio alpha_bar / (1 - alpha_bar) of every timestep is
multiplied by (base / side)^2: `side` is the side of the new images, `base` that of the images the schedule
was made for.

alpha_bars (T,), float64, all between 0 and 1, neither of them included -> the new ones (T,), float64.
"""


def shifted_alpha_bars(alpha_bars: Tensor, base: int, side: int) -> Tensor:
    raise NotImplementedError


def cases() -> list[Case]:
    return [
        Case("twice the side", (uniform(11, seed=1, low=0.02, high=0.98).double(), 64, 128)),
        Case("a smaller side", (uniform(7, seed=2, low=0.1, high=0.9).double(), 96, 32)),
        Case("the same side", (uniform(5, seed=3, low=0.1, high=0.9).double(), 64, 64)),
        Case(
            "drawn sides", (uniform(6, seed=4, low=0.1, high=0.9).double(), whole(9, 40, seed=5), whole(41, 90, seed=6))
        ),
    ]


TASK = Exercise(
    number=102,
    name="shifted_alpha_bars",
    title="A noise schedule for another size",
    level=2,
    minutes=15,
    notebook="05",
    task=TEXT,
    reference=shifted_alpha_bars,
    answer=None,
    cases=cases,
    mistakes=(),
    hints=(
        "Is there more noise or less where the new side is larger?",
        "From a ratio r back to the share: r / (1 + r).",
        "The same as adding to the logarithm of the ratio, which torch.logit gives.",
    ),
    rtol=1e-6,
    atol=1e-9,
)
