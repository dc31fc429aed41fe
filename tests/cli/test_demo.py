"""`minisd demo`: the list, a sheet with text, settings that a demo does not have."""

import re
from pathlib import Path

import pytest
from PIL import Image
from support.source_files import ROOT

from minisd.cli import main, options
from minisd.cli.option_names import option_of
from minisd.cli.parser import Parser
from minisd.demos import DEMOS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_name_all_demos_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(DEMOS)
    assert max(map(len, lines)) <= 100


def test_every_setting_has_an_option() -> None:
    parser = Parser("minisd demo")
    options.demo(parser)
    destinations = {action.dest for action in parser._actions}
    for entry in DEMOS.values():
        for name in entry.settings:
            assert name in destinations, f"{entry.name}: {name}"
            assert option_of(name) in parser.option_names


def test_the_readme_lists_every_demo_with_its_settings() -> None:
    text = (ROOT / "minisd" / "demos" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w-]+)`\]\((\w+)\.py\) \| [^|]+ \|([^|]*)\|", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(DEMOS)
    for name, module, settings in rows:
        entry = DEMOS[name]
        assert entry.show.__module__ == f"minisd.demos.{module}"
        assert {*settings.strip("` ").split()} == {option_of(each) for each in entry.settings}


def test_a_demo_prints_and_saves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "callback", "--prompt", "a red star", "--steps", "2", "--seed", "4", "-o", "a.png"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The latents callback: watch an image come out of noise\n\nAfter each of the 2 steps")
    assert "deviation of x_t" in printed
    assert "a.png  " in printed
    with Image.open(here / "a.png") as sheet:
        assert sheet.width > 500
        assert sheet.info["demo"] == "callback"
    assert main(command) == 8
    assert "a.png exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_images_and_files_are_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), "red").save("in.png")
    assert main(["demo", "vae", "--image", "in.png"]) == 0
    assert "vae.png" in capsys.readouterr().out
    assert (here / "vae.png").is_file()
    assert main(["demo", "weights", "--model", "sticker", "-o", "w.png"]) == 0
    assert "unet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["va"], 2, "there is no demo 'va'; did you mean vae"),
        (["vae", "--steps", "3"], 2, "the demo vae has no --steps; it has --image."),
        (["weights", "--seed", "3"], 2, "the demo weights has no --seed; it has --model alone."),
        (["callback", "--steps", "0"], 2, "--steps is 0, expected"),
        (["guidance", "--guidance", "1"], 2, "--guidance is 1, expected another number"),
        (["callback", "--seed", "-1"], 2, "--seed is -1, expected"),
        (["vae", "--image", "nothing.png"], 2, "nothing.png"),
        (["vae", "-o", "a.txt"], 8, "suffix '.txt'"),
        (["depth", "--model", "sticker"], 2, "this demo needs a model for depth, but sticker is for text"),
        (["heat-maps", "--word", "triangle"], 2, "'triangle' is not among"),
        (["surgery", "--prompt", "a red circle", "--word", "square"], 2, "'square' is not among"),
        (["vae", "--model", "no/such/model"], 2, "no known model"),
        (["weights", "--model", "nothing.safetensors"], 2, "no known model"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
