"""Three experiments with a model, judged by the checker, and their pictures: guidance, samplers, negative prompts.

Each experiment returns its data as a dict for JSON; each `plot_...` makes a PNG of such a dict, and returns the figure.
Rates are dicts as `Rate.as_json` makes them.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, DDPM, LMS, PNDM, DPMSolverMultistep, Scheduler, UniPC
from minisd.sticker.evaluation.diversity import entropy, main_thing
from minisd.sticker.evaluation.metrics import Rate, judge_prompts
from minisd.sticker.evaluation.plots import Data, new_figure, save_figure
from minisd.sticker.evaluation.prompt_suites import examples
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.splits import PAIRS

SCALES = (0, 1, 1.5, 2, 3, 4, 6, 8, 12)  # 0: no prompt; 1: no guidance
SAMPLERS: tuple[type[Scheduler], ...] = (DDIM, DDPM, PNDM, LMS, DPMSolverMultistep, UniPC)
STEPS = (2, 4, 8, 12, 20, 50)
FREE = "a circle"
TAUGHT = [colour for colour in COLOURS if ("circle", colour) not in PAIRS]


def guidance_sweep(
    sd: StableDiffusion,
    count: int,
    seed: int,
    steps: int | None = None,
    scales: Sequence[float] = SCALES,
    label: str | None = None,
) -> Data:
    """What guidance buys and costs: exact pictures of two things, and variety in the colour of "a circle".

    {"scales", "exact": a rate for each scale, "entropy": {"bits", "error"} for each, "count", "seed", "steps"}.
    """
    prompts = _prompts(sd, count, seed)
    exact, colours = [], []
    for scale in scales:
        exact.append(_exact(sd, prompts, seed, steps, scale, label))
        free = judge_prompts(sd, [FREE] * count, seed, steps, scale, label=label).verdicts
        found = [main_thing(verdict) for verdict in free]
        bits, error = entropy([None if thing is None else thing.colour for thing in found])
        colours.append({"bits": bits, "error": error})
    return _settings(sd, count, seed, steps) | {"scales": list(scales), "exact": exact, "entropy": colours}


def sampler_comparison(
    sd: StableDiffusion, count: int, seed: int, steps: Sequence[int] = STEPS, label: str | None = None
) -> Data:
    """How many steps each sampler needs for exact pictures of two things.

    {"steps", "samplers": {name: a rate for each number of steps}, "count", "seed"}. All run on the model's own noise
    schedule. One that ends in pure noise suits them all: v is defined there, and LMS, which divides by the signal,
    takes sigma 4096 for infinity. PNDM makes one model call more than steps.
    """
    prompts = _prompts(sd, count, seed)
    rates: dict[str, list[dict[str, float]]] = {}
    for sampler in SAMPLERS:
        other = copy.copy(sd)  # the caller's pipeline keeps its sampler
        other.scheduler = sampler.in_place_of(sd.scheduler)
        rates[sampler.__name__] = [_exact(other, prompts, seed, n, None, label) for n in steps]
    return {"count": count, "seed": seed, "steps": list(steps), "samplers": rates}


def negative_prompts(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> Data:
    """Does "a circle" with a colour as its negative prompt avoid the colour, and stay a circle?

    {"colours", and a rate for each: "without", "with": of the colour; "circle without", "circle with"}.
    """

    def draw(negative: str) -> tuple[list[str | None], dict[str, float]]:
        found = [main_thing(v) for v in judge_prompts(sd, [FREE] * count, seed, steps, None, negative, label).verdicts]
        circles = sum(thing is not None and thing.shape == "circle" for thing in found)
        return [None if thing is None else thing.colour for thing in found], Rate(circles, count).as_json()

    usual, circle = draw("")
    data: Data = {"colours": list(COLOURS), "without": [], "with": [], "circle without": [], "circle with": []}
    for colour in COLOURS:
        avoiding, still = draw(colour)
        data["without"].append(Rate(usual.count(colour), count).as_json())
        data["with"].append(Rate(avoiding.count(colour), count).as_json())
        data["circle without"].append(circle)
        data["circle with"].append(still)
    return _settings(sd, count, seed, steps) | data


def plot_guidance_sweep(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Rates and entropy over the guidance scale."""
    scales, bits = data["scales"], [each["bits"] for each in data["entropy"]]
    values = [each["rate"] for each in data["exact"]]
    best = values.index(max(values))
    figure, (left, right) = new_figure(
        2, f"Guidance {scales[best]:g} draws two things best: {_percent(values[best])} exact, {_percent(values[0])} at "
        f"{scales[0]:g};\nthe colour of \"{FREE}\" has {bits[best]:.1f} bits there, {bits[-1]:.1f} at {scales[-1]:g}",
    )  # fmt: skip
    _rates(left, scales, data["exact"], "two things")
    left.set(xlabel="guidance scale (0: no prompt, 1: no guidance)", ylabel="exact pictures")
    errors = [1.96 * each["error"] for each in data["entropy"]]
    right.errorbar(scales, bits, yerr=errors, marker="o", capsize=3)
    most = math.log2(len(TAUGHT))
    right.axhline(most, color="gray", linestyle=":", label=f"{len(TAUGHT)} taught colours alike: {most:.1f} bits")
    right.set(xlabel="guidance scale", ylabel=f'entropy of the colour of "{FREE}" (bits)', ylim=(0, 3.2))
    right.legend()
    return save_figure(figure, path, overwrite)


def plot_sampler_comparison(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Rates over the number of steps, a line for each sampler."""
    points = [
        (rate, steps, name)
        for name, rates in data["samplers"].items()
        for steps, rate in zip(data["steps"], rates, strict=True)
    ]
    best, _, _ = max(points, key=lambda point: point[0]["rate"])
    enough = [point for point in points if point[0]["rate"] >= best["low"]]
    rate, steps, name = min(enough, key=lambda point: (point[1], -point[0]["rate"]))
    figure, (axes,) = new_figure(
        1, f"{name} with {steps} steps draws {_percent(rate['rate'])} exactly,\n"
        f"within chance of the best of all ({_percent(best['rate'])})",
    )  # fmt: skip
    for k, (name, rates) in enumerate(data["samplers"].items()):
        beside = 0.95 + 0.1 * k / len(data["samplers"])  # each other, to tell the intervals apart
        _rates(axes, [beside * n for n in data["steps"]], rates, name)
    axes.set(xlabel="steps", ylabel="exact pictures of two things", xscale="log")
    axes.set_xticks(data["steps"], [str(n) for n in data["steps"]])
    axes.minorticks_off()
    axes.legend()
    return save_figure(figure, path, overwrite)


def plot_negative_prompts(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Rates with and without each colour as the negative prompt."""
    means = {
        key: sum(each["rate"] for each in data[key]) / len(data[key]) for key in ("without", "with", "circle with")
    }
    figure, (left, right) = new_figure(
        2, f'A colour as negative prompt of "{FREE}": its share goes from {_percent(means["without"])} to '
        f"{_percent(means['with'])} on average,\n{_percent(means['circle with'])} of the pictures show a circle",
    )  # fmt: skip
    places = list(range(len(data["colours"])))
    for axes, prefix in ((left, ""), (right, "circle ")):
        for shift, key in ((-0.1, "without"), (0.1, "with")):
            _rates(axes, [x + shift for x in places], data[prefix + key], f"{key} negative prompt", line="")
        axes.set_xticks(places, data["colours"], rotation=45)
        axes.set_xlabel("negative prompt")
    left.set_ylabel("pictures of that colour")
    right.set_ylabel("pictures of a circle")
    right.legend(loc="lower right")
    return save_figure(figure, path, overwrite)


def _prompts(sd: StableDiffusion, count: int, seed: int) -> list[str]:
    return [example.prompt for example in examples("two", count, seed, sd.defaults.words)]


def _exact(
    sd: StableDiffusion, prompts: list[str], seed: int, steps: int | None, scale: float | None, label: str | None
) -> dict[str, float]:
    verdicts = judge_prompts(sd, prompts, seed, steps, scale, label=label).verdicts
    return Rate(sum(verdict.exact for verdict in verdicts), len(verdicts)).as_json()


def _settings(sd: StableDiffusion, count: int, seed: int, steps: int | None) -> Data:
    return {"count": count, "seed": seed, "steps": sd.defaults.num_inference_steps if steps is None else steps}


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _rates(axes: Axes, places: Sequence[float], rates: Sequence[dict[str, float]], label: str, line: str = "-") -> None:
    """Rates as percentages, with their intervals as error bars."""
    values = [each["rate"] for each in rates]
    reach = [[each["rate"] - each["low"] for each in rates], [each["high"] - each["rate"] for each in rates]]
    axes.errorbar(places, values, yerr=reach, marker="o", linestyle=line, capsize=3, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(-0.03, 1.03)
