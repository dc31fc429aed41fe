"""`minisd eval`: the suites, the rates and files that it writes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from minisd.cli import main
from minisd.cli.evaluate import interval, suites
from minisd.world.captions import expectation


def test_suites_are_seeded_and_the_checker_can_read_them() -> None:
    single, two = suites(48, seed=3).values()
    assert suites(48, seed=3) == {"single": single, "two": two}
    assert suites(48, seed=4)["two"] != two
    assert all(single.count(prompt) == 2 for prompt in single)  # 24 kinds of things
    assert all(len(expectation(prompt).things) == 1 for prompt in single)
    assert all(expectation(prompt).relation is not None for prompt in two)


def test_intervals_are_wilsons() -> None:
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(1.0, 96) == pytest.approx((0.9615, 1.0), abs=1e-4)
    assert interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_rates_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--json", str(tmp_path / "rates.json"), "--sheet", str(tmp_path / "sheet.png"))
    assert main(["eval", "--count", "4", "--steps", "4", *files]) == 0
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert 0 <= rates["two"]["exact"] <= rates["two"]["colour"] <= 1
    assert rates["autoencoder"]["mean psnr"] >= rates["autoencoder"]["worst psnr"] > 25
    assert Image.open(tmp_path / "sheet.png").size[0] > 64
    assert "autoencoder" in capsys.readouterr().out
    assert main(["eval", *files]) == 8  # what is there is kept, and found before any work
