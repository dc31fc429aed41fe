"""Names of the UNet's blocks in the original checkpoints."""

import re

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import whole
from weights_loader.names import ldm

TASK = """
Translate the place of a residual block on the UNet's way down: the original files number all blocks in one row,
the library has levels. A level has `layers` residual blocks and then, except the last level, one downsampling;
the first block of the file, input_blocks.0, is the first convolution.

"input_blocks.N.0" -> "down.L.resnets.I" for the residual blocks, "down.L.resample" for a downsampling,
"conv_in" for N = 0. name: the original name; layers: residual blocks of a level -> the new name.
"""


def weight_names(name: str, layers: int) -> str:
    number = int(name.split(".")[1])
    if number == 0:
        return "conv_in"
    level, index = divmod(number - 1, layers + 1)
    return f"down.{level}.resample" if index == layers else f"down.{level}.resnets.{index}"


def cases() -> list[Case]:
    of_sd = [Case(f"block {n}, two layers", (f"input_blocks.{n}.0", 2)) for n in (0, 1, 2, 3, 4, 6, 11)]
    of_three = [Case(f"block {n}, three layers", (f"input_blocks.{n}.0", 3)) for n in (4, 5, 8)]
    drawn = [(whole(1, 40, seed=seed), whole(1, 8, seed=seed + 10)) for seed in range(3)]
    return [
        *of_sd,
        *of_three,
        *(Case(f"block {n}, layers {count}", (f"input_blocks.{n}.0", count)) for n, count in drawn),
    ]


def _first_ignored(name: str, layers: int) -> str:
    level, index = divmod(int(name.split(".")[1]), layers + 1)
    return f"down.{level}.resample" if index == layers else f"down.{level}.resnets.{index}"


def _no_downsampling(name: str, layers: int) -> str:
    number = int(name.split(".")[1])
    level, index = divmod(number - 1, layers)
    return "conv_in" if number == 0 else f"down.{level}.resnets.{index}"


def _from_one(name: str, layers: int) -> str:
    new = weight_names(name, layers)
    return re.sub(r"resnets\.(\d+)", lambda match: f"resnets.{int(match[1]) + 1}", new)


def _two_layers(name: str, layers: int) -> str:
    return weight_names(name, 2)


def _by_walking(name: str, layers: int) -> str:
    number, names = int(re.findall(r"\d+", name)[0]), ["conv_in"]
    level = 0
    while len(names) <= number:
        names += [f"down.{level}.resnets.{index}" for index in range(layers)] + [f"down.{level}.resample"]
        level += 1
    return names[number]


EXERCISE = Exercise(
    number=19,
    name="weight_names",
    title="Names in the original checkpoints",
    level=3,
    minutes=25,
    notebook="22",
    task=TASK,
    reference=weight_names,
    answer=ldm,
    cases=cases,
    mistakes=(
        Mistake("the first convolution is not counted, so everything is one place too late", _first_ignored),
        Mistake("the downsampling at the end of a level is not counted", _no_downsampling),
        Mistake("the residual blocks are counted from 1; expected from 0", _from_one),
        Mistake("a level always has two residual blocks; use `layers`", _two_layers),
    ),
    hints=(
        "Write down the row for two layers: the first convolution is at 0, but what is at 1, 2, 3, 4?",
        "Without the first convolution a level has layers + 1 places.",
        "divmod gives the level and the place in it.",
    ),
    variants=(_by_walking,),
)
