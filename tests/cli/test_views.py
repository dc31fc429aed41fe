"""--grid, --turned and --loop: the images are those of Python; what contradicts itself is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import weights_loader
from minisd.cli import main
from minisd.pipeline import StableDiffusion, View, view_grid
from minisd.pipeline.noise import noise_circle

STEPS = ("--steps", "2", "--seed", "5", "--scale", "1")


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


def drawn(sd: StableDiffusion, **arguments: Any) -> list[np.ndarray]:
    return [np.asarray(image) for image in sd(num_inference_steps=2, **arguments).images]


def test_a_grid_has_a_line_of_the_prompt_for_each_window(sd: StableDiffusion, tmp_path: Path) -> None:
    lines = ["a red circle", "a blue star", "a green heart"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    assert main([f"@{tmp_path / 'lines.txt'}", "--grid", "3x1", *STEPS, "-o", str(tmp_path / "a.png")]) == 0
    (expected,) = drawn(sd, views=view_grid(lines, 3, 1, 128), seed=5)
    assert expected.shape == (128, 320, 3)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(image, expected)
        assert image.info["grid"] == "3x1"  # type: ignore[attr-defined]
    assert main(["a red circle", "--grid", "1x2", *STEPS, "-o", str(tmp_path / "b.png")]) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (128, 224)


def test_turned(sd: StableDiffusion, tmp_path: Path) -> None:
    for turn in ("half", "flip"):
        chosen = [] if turn == "half" else ["--turn", turn]
        asked = ["a red heart", "--turned", "a red triangle", *chosen, "--count", "2"]
        assert main([*asked, *STEPS, "-o", str(tmp_path / f"{turn}.png")]) == 0
        views = [View("a red heart"), View("a red triangle", turn=turn)]
        for k, expected in enumerate(drawn(sd, views=views, seed=5, num_images_per_prompt=2), 1):
            with Image.open(tmp_path / f"{turn}-{k}.png") as image:
                assert np.array_equal(image, expected)


def test_a_loop_repeats_with_its_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        asked = ["a red star", "--loop", "3", "--sampler", "euler-a", *STEPS, "-o", str(tmp_path / f"{name}.gif")]
        assert main(asked) == 0
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_a_film_beside_a_loop_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["a red star", "--loop", "2", "--film", "a-red-star.gif", *STEPS]) == 8
    assert not list(tmp_path.iterdir())


def test_a_loop_is_one_file(sd: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["a purple star", "--loop", "4", *STEPS]) == 0
    expected = drawn(sd, prompt="a purple star", num_images_per_prompt=4, latents=noise_circle(4, (4, 16, 16), seed=5))
    with Image.open(tmp_path / "a-purple-star.gif") as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]
        for k, frame in enumerate(expected):
            animation.seek(k)
            difference = np.asarray(animation.convert("RGB"), dtype=int) - frame
            assert abs(difference).mean() < 4  # a GIF has 256 colours
    asked = ["a red star", "--loop", "2", "--grid", "2x1", *STEPS[:4], "--scale", "2", "-o", str(tmp_path / "wide.gif")]
    assert main(asked) == 0
    with Image.open(tmp_path / "wide.gif") as animation:
        assert animation.size == (448, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "3"], "--grid is '3', expected columns and rows, such as 5x3"),
        (["--grid", "0x3"], "--grid is '0x3', expected columns and rows"),
        (["--grid", "99x99"], "--grid is 9,801 windows, expected at most 1,000"),
        (["--grid", "2x2", "--turned", "b"], "--grid and --turned were both given"),
        (["--turn", "half"], "give --turned"),
        (["--loop", "1"], "--loop is 1"),
        (["--loop", "4", "--count", "2"], "remove --count"),
        (["--loop", "4", "--image", "x.png"], "remove --image"),
        (["--loop", "4", "--height", "-8"], "--height is -8"),
        (["--loop", "4", "--width", "9999999999"], "--width is 9999999999"),
        (["--loop", "1000", "--width", "800000", "--height", "800000"], "the noise of 1000 frames needs about"),
        (["--turned", "a star " * 40, "--strict-prompt"], "would be dropped"),
        (["--loop", "4", "-o", "a.png"], "expected .gif"),
        (["--loop", "4", "--best-of", "2"], "remove --count and --best-of"),
        (["--grid", "2x1", "--best-of", "2"], "remove --best-of, or --grid"),
        (["--grid", "2x1", "--width", "64"], "--grid decides the size"),
    ],
)
def test_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red star", *options]) in (2, 7, 8)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("minisd: ")
    assert re.search(message, line), line


def test_as_many_lines_as_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("a red star\na red heart\n")
    assert main([f"@{tmp_path / 'lines.txt'}", "--grid", "3x1"]) == 2
    assert "there are 2 prompts for 3 x 1 views" in capsys.readouterr().err
