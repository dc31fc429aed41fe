"""The READMEs: their examples run, their links lead somewhere, their figures are the measured ones."""

import json
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image, ImageDraw
from support.source_files import CORE, FILES

import weights_loader
from minisd import cli
from minisd.cli import options
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.prompt_suites import SUITES

ROOT = Path(__file__).resolve().parents[1]
STICKER = ROOT / "minisd" / "assets" / "sticker"
STEPS = 4  # of examples, whatever they ask for: enough to run them, too few for good images
READMES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("minisd/*/README.md")),
    ROOT / "weights_loader" / "README.md",
    ROOT / "notebooks" / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
]
TEXTS = {path: path.read_text(encoding="utf-8") for path in (*READMES, STICKER / "README.md")}
README = TEXTS[ROOT / "README.md"]


class Block(NamedTuple):
    """A fenced block of a README: its language, its code and the line of its opening fence."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a bash block, or of each `$ ` line of a console block."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if block.language == "bash" or line.startswith("$ "):
            for command in re.split(r"&&|;", line.removeprefix("$ ")):
                yield shlex.split(command, comments=True)


def run_command(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `minisd ...` or `python -m minisd...` in this process; other commands are not ours."""
    match words:
        case ["minisd", *arguments]:
            assert cli.main(arguments) == 0, f"{where}: {shlex.join(words)}"
        case ["python", "-m", module, *_] if module.startswith("minisd"):
            monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded models draw in few steps by default."""
    load = weights_loader.load

    def load_quick(*arguments: Any, **settings: Any) -> StableDiffusion:
        sd = load(*arguments, **settings)
        sd.defaults = replace(sd.defaults, num_inference_steps=STEPS)
        return sd

    monkeypatch.setattr(weights_loader, "load", load_quick)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run examples in: images to begin with, and the embedded model's adapters, as in a clone."""
    mask, depth, small = Image.new("L", (128, 128)), Image.new("L", (128, 128)), Image.new("RGB", (16, 16), "beige")
    ImageDraw.Draw(mask).rectangle((8, 8, 80, 80), fill="white")
    ImageDraw.Draw(depth).ellipse((20, 20, 68, 68), fill="white")
    ImageDraw.Draw(small).ellipse((2, 2, 8, 8), fill="red")
    for name, image in (("mask", mask), ("depth", depth), ("small", small)):
        image.save(tmp_path / f"{name}.png")
    adapters = STICKER.relative_to(ROOT) / "adapters"
    shutil.copytree(ROOT / adapters, tmp_path / adapters)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command line replaces it
    return tmp_path


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("quick")
def test_examples_run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks and `minisd` commands, in order; a command may use the files of an earlier one."""
    for block in blocks(TEXTS[path]):
        where = f"{path.relative_to(ROOT)}:{block.line}"
        assert block.language in ("python", "bash", "console", ""), f"{where} is {block.language}"
        if block.language == "python":
            quickly = re.sub(r"(num_inference_steps=)\d+", rf"\g<1>{STEPS}", block.code)
            code = compile("\n" * block.line + quickly, str(path), "exec")  # errors name the README's own lines
            exec(code, {"__name__": "__main__"})
        elif block.language == "bash":
            for words in commands(block):
                run_command(words, where, monkeypatch)


def test_commands_that_are_not_run_have_valid_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Console blocks need official weights, a network or hours: only their options are read."""
    for command in (options.generate, *options.COMMANDS.values()):
        monkeypatch.setattr(f"minisd.cli.{command.__name__}.run", lambda arguments: 0)
    for path, text in TEXTS.items():
        for block in blocks(text):
            for words in commands(block) if block.language == "console" else ():
                if words[:1] == ["minisd"]:
                    run_command(words, f"{path.relative_to(ROOT)}:{block.line}", monkeypatch)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_images_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]):
        if not link.startswith(("https://", "http://")):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_relative_to(ROOT), f"{link} leaves the repository"
            assert target.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"no heading for {link}"


def section(title: str) -> str:
    """The text under a heading of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_the_reading_list_is_in_the_core() -> None:
    rows = re.findall(
        r"^\| \[`([\w/.]+)`\]\(\1\) \| [^|]+ \| (.*) \|$", section("Read it in an afternoon"), re.MULTILINE
    )
    assert len(rows) == 10
    assert rows[0][0] == "minisd/minimal.py"
    for name, notebook in rows:
        assert (ROOT / name).is_file(), name
        assert Path(name).with_suffix("").parts[1] in CORE, name
        assert re.fullmatch(r"\[(\d\d)\]\(notebooks/\1_\w+\.ipynb\)", notebook), notebook


def test_the_map_has_every_package() -> None:
    rows = re.findall(r"^\| \[`([\w/]+)`\]\(\1\) \|", section("Where things are"), re.MULTILINE)
    packages = {"/".join(module.split(".")[:2]) for module, path in FILES.items() if path.name == "__init__.py"}
    assert sorted(rows) == sorted(packages - {"minisd"} - {name for name in packages if "weights_loader/" in name})


def share(rate: dict[str, float] | None, interval: bool = False) -> str:
    """As the tables give it; a dash for what a suite does not ask."""
    if rate is None:
        return "-"
    low, high = (f"{100 * rate[name]:.1f}" for name in ("low", "high"))
    return f"{100 * rate['rate']:.1f} %" + (f" ({low} to {high})" if interval else "")


def measured(name: str) -> dict[str, Any]:
    return json.loads((STICKER / name).read_text())


def table(pattern: str) -> dict[str, str]:
    """The rows of the READMEs that a pattern of (name, values) matches, by name."""
    return dict(row for path in READMES for row in re.findall(pattern, TEXTS[path], re.MULTILINE))


def test_the_table_of_suites_is_what_was_measured() -> None:
    rows = table(r"^\| ([\w -]+) \| [^|]+ \| (.+ \| .+ \| .+ \| .+ \| .+) \|$")
    card = " ".join((STICKER / "README.md").read_text().split())
    results = measured("results.json")
    suites = {name: results[name] for name in SUITES if name in results}
    assert len(suites) >= 13
    for name, skills in suites.items():
        columns = [share(skills.get(skill)) for skill in ("colour", "shape", "relation", "count")]
        assert rows[name] == " | ".join([*columns, share(skills["exact"], interval=True)]), name
        assert f"{name} {share(skills['exact'])}" in card, name


def test_the_table_of_variants_is_what_was_measured() -> None:
    tasks = measured("tasks.json")
    rows = table(r"^\| `(sticker-\w+)` \| [^|]+ \| (.+) \|$")
    hole, depth, small = (tasks[f"sticker-{task}"] for task in ("inpainting", "depth", "upscaling"))
    floor = hole["outside by the autoencoder"]
    for figure in (share(hole["exact"]), f"{hole['outside']:.1f} dB", f"the autoencoder alone {floor:.1f}"):
        assert figure in rows["sticker-inpainting"]
    for figure in (f"IoU {depth['iou']:.2f}", share(depth["colour"]), share(depth["exact"])):
        assert figure in rows["sticker-depth"]
    for figure in (f"{small['psnr']:.1f} dB", f"bicubic {small['bicubic psnr']:.1f}", share(small["exact"])):
        assert figure in rows["sticker-upscaling"]


def test_the_table_of_views_is_what_was_measured() -> None:
    text = TEXTS[ROOT / "minisd" / "sticker" / "README.md"]
    measured = json.loads((ROOT / "tests" / "results" / "views.json").read_text())["views"]
    rows = re.findall(r"^\| (a [\w ]+) \| (a [\w ]+) \| (flip|half) \| (.+) \|$", text, re.MULTILINE)
    assert [f"{prompt}, {turn}: {turned}" for prompt, turned, turn, _ in rows] == [*measured][: len(rows)]
    for prompt, turned, turn, rate in rows:
        assert rate == share(measured[f"{prompt}, {turn}: {turned}"], interval=True)
    assert share(measured["canvas"], interval=True) in text
    loop = measured["loop"]
    for name in ("step", "largest_step", "apart"):
        assert f"by {loop[name]:.3f}" in text
