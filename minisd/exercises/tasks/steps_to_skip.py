"""Where image to image begins."""

from contextlib import AbstractContextManager

from minisd.exercises.exercise import Case, Exercise, Mistake, Solution, replaced
from minisd.exercises.inputs import image_to_image, whole
from minisd.pipeline import initial_latents, request_builder

TASK = """
How many steps of the run are left out at its beginning, so that `strength` of the steps are done: strength 1
does all of them, strength 0.3 of 50 steps does 15. The number of steps that are done is rounded down.

steps: a whole number; strength: in 0..1 -> a whole number.
"""


def steps_to_skip(steps: int, strength: float) -> int:
    return steps - int(steps * strength)


def cases() -> list[Case]:
    pairs = ((50, 0.3), (30, 0.6), (20, 1.0), (7, 0.5), (50, 0.29))
    drawn = [(whole(10, 100, seed), whole(1, 100, seed + 10) / 100) for seed in range(3)]
    return [Case(f"{steps} steps, strength {strength:g}", (steps, strength)) for steps, strength in (*pairs, *drawn)]


def _inverted(steps: int, strength: float) -> int:
    return int(steps * strength)


def _rounded(steps: int, strength: float) -> int:
    return steps - round(steps * strength)


def _rounded_up(steps: int, strength: float) -> int:
    return int(steps * (1 - strength))


def _by_floor(steps: int, strength: float) -> int:
    return steps - int(steps * strength // 1)


def install(solution: Solution) -> AbstractContextManager[None]:
    return replaced(request_builder, "steps_to_skip", solution)


EXERCISE = Exercise(
    number=15,
    name="steps_to_skip",
    title="Where image to image begins",
    level=1,
    minutes=10,
    notebook="17",
    task=TASK,
    reference=steps_to_skip,
    answer=initial_latents.steps_to_skip,
    cases=cases,
    mistakes=(
        Mistake("this is how many steps are done; asked for is how many are left out", _inverted),
        Mistake("the steps that are done are rounded to the nearest; expected down", _rounded),
        Mistake("the steps that are left out are rounded down; expected those that are done", _rounded_up),
    ),
    hints=(
        "Asked for are the steps that are left out, not those that are done: none at strength 1.",
        "First the steps that are done: int() rounds down.",
        "Left out are all the others.",
    ),
    install=install,
    run=lambda sd: image_to_image(sd) | {"num_inference_steps": 6},
    variants=(_by_floor,),
)
