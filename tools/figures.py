"""The curves in the READMEs, as data and as plots: `python -m tools.figures FOLDER`.

The order of the samplers, and three experiments that the checker judges: guidance scale, samplers, negative prompts.
Each `measure_...` returns its data as a dict for JSON, with rates as `Rate.as_json` makes them; each `plot_...` writes
such data as a PNG, and returns the figure.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import weights_loader
from minisd._internal.atomic_files import check_target, write_atomically, write_json
from minisd.parity.sampler_order import convergence
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, DDPM, LMS, PNDM, DPMSolverMultistep, Scheduler, UniPC
from minisd.sticker.evaluation.diversity import entropy, largest_object
from minisd.sticker.evaluation.judging import Rate, judge_prompts
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.splits import HELD_OUT_PAIRS

Data = dict[str, Any]  # for JSON
SCALES = (0, 1, 1.5, 2, 3, 4, 6, 8, 12)  # 0: no prompt; 1: no guidance
SAMPLERS: tuple[type[Scheduler], ...] = (DDIM, DDPM, PNDM, LMS, DPMSolverMultistep, UniPC)
STEPS = (2, 4, 8, 12, 20, 50)
OPEN_PROMPT = "a circle"  # leaves the colour open
TRAINING_COLOURS = [colour for colour in COLOURS if ("circle", colour) not in HELD_OUT_PAIRS]


def measure_guidance_sweep(
    sd: StableDiffusion,
    count: int,
    seed: int,
    steps: int | None = None,
    scales: Sequence[float] = SCALES,
    label: str | None = None,
) -> Data:
    """The effect of guidance: exact images of two objects, and the entropy of the colour of "a circle".

    {"scales", "exact": a rate for each scale, "entropy": {"bits", "error"} for each, "count", "seed", "steps"}.
    """
    prompts = _prompts(sd, count, seed)
    exact, colours = [], []
    for scale in scales:
        exact.append(judge_prompts(sd, prompts, seed, steps, scale, label=label).exact.as_json())
        verdicts = judge_prompts(sd, [OPEN_PROMPT] * count, seed, steps, scale, label=label).verdicts
        found = [largest_object(verdict) for verdict in verdicts]
        bits, error = entropy([None if obj is None else obj.colour for obj in found])
        colours.append({"bits": bits, "error": error})
    return _settings(sd, count, seed, steps) | {"scales": list(scales), "exact": exact, "entropy": colours}


def measure_sampler_comparison(
    sd: StableDiffusion, count: int, seed: int, steps: Sequence[int] = STEPS, label: str | None = None
) -> Data:
    """The number of steps that each sampler needs for exact images of two objects.

    {"steps", "samplers": {name: a rate for each number of steps}, "count", "seed"}. All use the model's own noise
    schedule. It ends in pure noise, which suits all of them: v is defined there, and LMS, which divides by the signal,
    replaces infinity by sigma 4096. PNDM calls the model once more than there are steps.
    """
    prompts = _prompts(sd, count, seed)
    rates: dict[str, list[dict[str, float]]] = {}
    for sampler in SAMPLERS:
        other = copy.copy(sd)  # the caller's pipeline keeps its sampler
        other.scheduler = sampler.in_place_of(sd.scheduler)
        rates[sampler.__name__] = [judge_prompts(other, prompts, seed, n, label=label).exact.as_json() for n in steps]
    return {"count": count, "seed": seed, "steps": list(steps), "samplers": rates}


def measure_negative_prompts(
    sd: StableDiffusion, count: int, seed: int, steps: int | None = None, label: str | None = None
) -> Data:
    """Whether "a circle" with a colour as its negative prompt avoids that colour, and still gives a circle.

    {"colours", and a rate for each: "without", "with": of the colour; "circle without", "circle with"}.
    """

    def draw(negative: str) -> tuple[list[str | None], dict[str, float]]:
        prompts = [OPEN_PROMPT] * count
        verdicts = judge_prompts(sd, prompts, seed, steps, negative_prompt=negative, label=label).verdicts
        found = [largest_object(verdict) for verdict in verdicts]
        circles = sum(obj is not None and obj.shape == "circle" for obj in found)
        return [None if obj is None else obj.colour for obj in found], Rate(circles, count).as_json()

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
    """Plot rates and entropy over the guidance scale."""
    scales, bits = data["scales"], [each["bits"] for each in data["entropy"]]
    values = [each["rate"] for each in data["exact"]]
    best = values.index(max(values))
    title = (
        f"Two objects are best at guidance {scales[best]:g}: {_percent(values[best])} exact, {_percent(values[0])} at "
        f'{scales[0]:g};\nthe colour of "{OPEN_PROMPT}" has {bits[best]:.1f} bits there, {bits[-1]:.1f} at '
        f"{scales[-1]:g}"
    )
    figure, (left, right) = new_figure(2, title)
    _plot_rates(left, scales, data["exact"], "two objects")
    left.set(xlabel="guidance scale (0: no prompt, 1: no guidance)", ylabel="exact images")
    errors = [1.96 * each["error"] for each in data["entropy"]]
    right.errorbar(scales, bits, yerr=errors, marker="o", capsize=3)
    count = len(TRAINING_COLOURS)
    label = f"{count} training colours, equally likely: {math.log2(count):.1f} bits"
    right.axhline(math.log2(count), color="gray", linestyle=":", label=label)
    right.set(xlabel="guidance scale", ylabel=f'entropy of the colour of "{OPEN_PROMPT}" (bits)', ylim=(0, 3.2))
    right.legend()
    return save_figure(figure, path, overwrite)


def plot_sampler_comparison(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Plot rates over the number of steps, a line for each sampler."""
    points = [
        (rate, steps, name)
        for name, rates in data["samplers"].items()
        for steps, rate in zip(data["steps"], rates, strict=True)
    ]
    best, _, _ = max(points, key=lambda point: point[0]["rate"])
    enough = [point for point in points if point[0]["rate"] >= best["low"]]
    rate, steps, name = min(enough, key=lambda point: (point[1], -point[0]["rate"]))
    title = (
        f"{name} with {steps} steps gives {_percent(rate['rate'])} exact images,\n"
        f"within chance of the best of all ({_percent(best['rate'])})"
    )
    figure, (axes,) = new_figure(1, title)
    for k, (name, rates) in enumerate(data["samplers"].items()):
        shift = 0.95 + 0.1 * k / len(data["samplers"])  # so that the intervals are beside each other
        _plot_rates(axes, [shift * n for n in data["steps"]], rates, name)
    axes.set(xlabel="steps", ylabel="exact images of two objects", xscale="log")
    axes.set_xticks(data["steps"], [str(n) for n in data["steps"]])
    axes.minorticks_off()
    axes.legend()
    return save_figure(figure, path, overwrite)


def plot_negative_prompts(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Plot rates with and without each colour as the negative prompt."""
    means = {
        key: sum(each["rate"] for each in data[key]) / len(data[key]) for key in ("without", "with", "circle with")
    }
    title = (
        f'A colour as negative prompt of "{OPEN_PROMPT}": its share goes from {_percent(means["without"])} to '
        f"{_percent(means['with'])} on average,\n{_percent(means['circle with'])} of the images show a circle"
    )
    figure, (left, right) = new_figure(2, title)
    places = list(range(len(data["colours"])))
    for axes, prefix in ((left, ""), (right, "circle ")):
        for shift, key in ((-0.1, "without"), (0.1, "with")):
            _plot_rates(axes, [x + shift for x in places], data[prefix + key], f"{key} negative prompt", line="")
        axes.set_xticks(places, data["colours"], rotation=45)
        axes.set_xlabel("negative prompt")
    left.set_ylabel("images of that colour")
    right.set_ylabel("images of a circle")
    right.legend(loc="lower right")
    return save_figure(figure, path, overwrite)


def plot_convergence(data: Data, path: str | Path, overwrite: bool = False) -> Figure:
    """Plot errors over the number of steps on logarithmic axes: the slope is the order."""
    falls = sorted((2 ** each["order"], name) for name, each in data["samplers"].items())
    (slow, first), (fast, best) = falls[0], falls[-1]
    title = f"Twice the steps: {first}'s error falls {slow:.0f} times, {best}'s {fast:.0f} times"
    figure, (axes,) = new_figure(1, title)
    for name, each in data["samplers"].items():
        axes.plot(data["steps"], each["errors"], marker="o", label=f"{name}: order {each['order']:.1f}")
    axes.set(xlabel="steps", ylabel="error before the last step", xscale="log", yscale="log")
    axes.set_xticks(data["steps"], [str(n) for n in data["steps"]])
    axes.minorticks_off()
    axes.legend()
    return save_figure(figure, path, overwrite)


def new_figure(columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with a title and `columns` plots side by side."""
    figure = Figure(figsize=(6.4 * columns, 4.8), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_figure(figure: Figure, path: str | Path, overwrite: bool) -> Figure:
    """Write a PNG, and return the figure."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120), overwrite)
    return figure


def _prompts(sd: StableDiffusion, count: int, seed: int) -> list[str]:
    return [example.prompt for example in suite_examples("two", count, seed, sd.defaults.words)]


def _settings(sd: StableDiffusion, count: int, seed: int, steps: int | None) -> Data:
    return {"count": count, "seed": seed, "steps": sd.defaults.num_inference_steps if steps is None else steps}


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _plot_rates(
    axes: Axes, places: Sequence[float], rates: Sequence[dict[str, float]], label: str, line: str = "-"
) -> None:
    """Plot rates as percentages, with their intervals as error bars."""
    values = [each["rate"] for each in rates]
    reach = [[each["rate"] - each["low"] for each in rates], [each["high"] - each["rate"] for each in rates]]
    axes.errorbar(places, values, yerr=reach, marker="o", linestyle=line, capsize=3, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(-0.03, 1.03)


def draw_all(sd: StableDiffusion, folder: Path, count: int, seed: int, steps: int | None, overwrite: bool) -> None:
    """Measure and plot everything; each data file is written before its plot. Raises OutputError before any work."""
    for name in FIGURES:
        for suffix in ("json", "png"):
            check_target(folder / f"{name}.{suffix}", overwrite)
    for name, (measure, plot) in FIGURES.items():
        data = measure(sd, count, seed, steps)
        write_json(data, folder / f"{name}.json", overwrite)
        plot(data, folder / f"{name}.png", overwrite)


FIGURES: dict[str, tuple[Callable[..., Data], Callable[..., Figure]]] = {
    "convergence": (lambda sd, count, seed, steps: convergence(), plot_convergence),
    "guidance_sweep": (measure_guidance_sweep, plot_guidance_sweep),
    "sampler_comparison": (
        lambda sd, count, seed, steps: measure_sampler_comparison(sd, count, seed),
        plot_sampler_comparison,
    ),
    "negative_prompts": (measure_negative_prompts, plot_negative_prompts),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64, help="images of each measurement")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    draw_all(weights_loader.load("sticker"), **vars(parser.parse_args()))
