"""The README keeps its word: the layout table names what is there, the model's figures are those that were measured."""

import json
import re
from pathlib import Path
from typing import Any

from minisd.sticker.evaluation.prompt_suites import SUITES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
STICKER = ROOT / "minisd" / "assets" / "sticker"


def lines(path: Path) -> int:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(len(file.read_text().splitlines()) for file in files)


def test_the_layout_table_is_true() -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) > 15
    for name, count in rows:
        assert (ROOT / name).exists(), name
        assert abs(lines(ROOT / name) - int(count)) <= max(20, 0.15 * int(count)), (
            f"{name} has {lines(ROOT / name)} lines"
        )


def test_every_module_is_in_the_layout_table() -> None:
    names = re.findall(r"^\| `([\w/.]+)` \|", README, re.MULTILINE)
    listed = [ROOT / name for name in names]
    for package in ("minisd", "weights_loader"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py" or path.parent.name == "weights_loader":
                assert any(path == each or each in path.parents for each in listed), path.relative_to(ROOT)


def test_pictures_in_it_exist() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name


def share(rate: dict[str, float] | None, interval: bool = False) -> str:
    """As the tables give it; a dash for what a suite does not ask."""
    if rate is None:
        return "-"
    low, high = (f"{100 * rate[name]:.1f}" for name in ("low", "high"))
    return f"{100 * rate['rate']:.1f} %" + (f" ({low} to {high})" if interval else "")


def measured(name: str) -> dict[str, Any]:
    return json.loads((STICKER / name).read_text())


def test_the_table_of_suites_is_what_was_measured() -> None:
    rows = dict(re.findall(r"^\| ([\w -]+) \| [^|]+ \| (.+ \| .+ \| .+ \| .+ \| .+) \|$", README, re.MULTILINE))
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
    rows = dict(re.findall(r"^\| `(sticker-\w+)` \| [^|]+ \| (.+) \|$", README, re.MULTILINE))
    hole, depth, small = (tasks[f"sticker-{task}"] for task in ("inpainting", "depth", "upscaling"))
    floor = hole["outside by the autoencoder"]
    for said in (share(hole["exact"]), f"{hole['outside']:.1f} dB", f"the autoencoder alone {floor:.1f}"):
        assert said in rows["sticker-inpainting"]
    for said in (f"IoU {depth['iou']:.2f}", share(depth["colour"]), share(depth["exact"])):
        assert said in rows["sticker-depth"]
    for said in (f"{small['psnr']:.1f} dB", f"bicubic {small['bicubic psnr']:.1f}", share(small["exact"])):
        assert said in rows["sticker-upscaling"]
