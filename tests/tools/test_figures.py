"""The experiments with painters whose results are known, and the titles of their plots."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.painter import Painter, Request, as_requested, in_other_colours

from minisd.errors import OutputError
from minisd.parity.sampler_order import convergence
from minisd.pipeline import StableDiffusion
from minisd.schedulers import LCM, LMS, Scheduler
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.scene import Scene
from tools import figures


def needs_guidance(request: Request) -> Scene:
    """Right from guidance 3 on, and then always green if the prompt leaves the colour open."""
    scene = (as_requested if request.scale >= 3 else in_other_colours)(request)
    if request.prompt == "a circle" and request.scale >= 3:
        return replace(scene, objects=(replace(scene.objects[0], colour="green"),))
    return scene


def slow(request: Request) -> Scene:
    """Right from eight steps on, with LMS from four."""
    needed = 4 if isinstance(request.scheduler, LMS) else 8
    return (as_requested if request.steps >= needed else in_other_colours)(request)


def avoids_yellow(request: Request) -> Scene:
    """Draws yellow circles, or purple stars if yellow is the negative prompt."""
    prompt = "a purple star" if request.negative == "yellow" else "a yellow circle"
    return as_requested(Request(prompt=prompt, seed=request.seed))


def test_guidance_sweep(tmp_path: Path) -> None:
    sd: StableDiffusion = Painter(needs_guidance)  # type: ignore[assignment]
    data = figures.measure_guidance_sweep(sd, 6, seed=0, scales=(0, 1, 3))
    assert [each["rate"] for each in data["exact"]] == [0, 0, 1]
    assert data["exact"][2]["low"] < 1
    assert data["entropy"][2] == {"bits": 0, "error": 0}
    assert 1 < data["entropy"][0]["bits"] < math.log2(7)
    assert (data["count"], data["seed"], data["steps"]) == (6, 0, 50)
    figure = figures.plot_guidance_sweep(json.loads(json.dumps(data)), tmp_path / "a.png")
    assert "Two objects are best at guidance 3: 100 % exact, 0 % at 0" in figure.get_suptitle()
    assert_plotted(tmp_path / "a.png", figure)


def test_sampler_comparison(tmp_path: Path) -> None:
    painter = Painter(slow)
    before = painter.scheduler
    data = figures.measure_sampler_comparison(painter, 2, seed=0, steps=(2, 4, 8))  # type: ignore[arg-type]
    assert painter.scheduler is before
    assert list(data["samplers"]) == ["DDIM", "DDPM", "PNDM", "LMS", "DPMSolverMultistep", "UniPC"]
    assert [each["rate"] for each in data["samplers"]["DDIM"]] == [0, 0, 1]
    assert [each["rate"] for each in data["samplers"]["LMS"]] == [0, 1, 1]
    figure = figures.plot_sampler_comparison(json.loads(json.dumps(data)), tmp_path / "a.png")
    assert figure.get_suptitle().startswith("LMS with 4 steps gives 100 % exact images")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(data["samplers"])
    assert_plotted(tmp_path / "a.png", figure)


def test_negative_prompts(tmp_path: Path) -> None:
    data = figures.measure_negative_prompts(Painter(avoids_yellow), 2, seed=0)  # type: ignore[arg-type]
    yellow = list(COLOURS).index("yellow")
    assert [each["rate"] for each in data["without"]] == [float(k == yellow) for k in range(8)]
    assert [each["rate"] for each in data["with"]] == [0] * 8
    assert [each["rate"] for each in data["circle without"]] == [1] * 8
    assert [each["rate"] for each in data["circle with"]] == [float(k != yellow) for k in range(8)]
    figure = figures.plot_negative_prompts(json.loads(json.dumps(data)), tmp_path / "a.png")
    assert "from 12 % to 0 % on average,\n88 % of the images show a circle" in figure.get_suptitle()
    assert_plotted(tmp_path / "a.png", figure)
    with pytest.raises(OutputError, match="exists already"):
        figures.plot_negative_prompts(data, tmp_path / "a.png")


def test_convergence(tmp_path: Path) -> None:
    figure = figures.plot_convergence(convergence(steps=(10, 20, 40)), tmp_path / "a.png")
    assert figure.get_suptitle().startswith("Twice the steps: Euler's error falls 2 times, LMS's")
    assert "Heun: order 2.1" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert Image.open(tmp_path / "a.png").size == (768, 576)


def test_all_figures_are_written_with_their_data(tmp_path: Path) -> None:
    painter: StableDiffusion = Painter()  # type: ignore[assignment]
    figures.draw_all(painter, tmp_path, count=1, seed=0, steps=None, overwrite=False)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted([*figures.FIGURES, *figures.FIGURES])
    guidance = json.loads((tmp_path / "guidance_sweep.json").read_text())
    assert guidance["scales"] == [0, 1, 1.5, 2, 3, 4, 6, 8, 12]
    assert {each["rate"] for each in guidance["exact"]} == {1}
    assert json.loads((tmp_path / "sampler_comparison.json").read_text())["steps"] == [2, 4, 8, 12, 20, 50]
    with pytest.raises(OutputError, match="exists already"):
        figures.draw_all(painter, tmp_path, count=1, seed=0, steps=None, overwrite=False)


def assert_plotted(path: Path, figure: figures.Figure) -> None:
    assert Image.open(path).size[1] == 576
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert any(container.has_yerr for container in axes.containers)


@pytest.mark.parametrize("sampler", [sampler for sampler in Scheduler.samplers.values() if sampler is not LCM])
def test_every_sampler_can_start_from_pure_noise(sampler: type[Scheduler]) -> None:
    """With the exact v of normally distributed data, 200 steps on the schedule of the comparison end in that data."""
    mean, std = 0.7, 0.5
    scheduler = sampler.in_place_of(Painter().scheduler)
    assert scheduler.schedule.alpha_bar(999) == 0
    rng = torch.Generator().manual_seed(0)
    grid = scheduler.grid(200)
    x, memory = torch.randn(4000, generator=rng) * grid.init_noise_sigma, None
    for i, t in enumerate(grid.timesteps):
        alpha_bar = scheduler.schedule.alpha_bar(int(t))
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        seen = scheduler.scale_input(grid, i, x)
        x0 = mean + signal * std**2 / (alpha_bar * std**2 + noise**2) * (seen - signal * mean)
        v = signal * (seen - signal * x0) / noise - noise * x0
        x, _, memory = scheduler.step(grid, i, x, v, memory, lambda: torch.randn(4000, generator=rng))
    assert float(x.mean()) == pytest.approx(mean, abs=0.03)
    assert float(x.std()) == pytest.approx(std, rel=0.05)
