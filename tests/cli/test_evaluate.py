"""`minisd eval`: the printed and written results, for the embedded model and for a pipeline that is always right."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.painter import Painter, in_other_colours

import weights_loader
from minisd.cli import main
from minisd.cli.evaluate import contact_sheet
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation import judge_prompts
from minisd.sticker.evaluation.edits import EditRates
from minisd.sticker.evaluation.inversion import InversionQuality, measure_inversion
from minisd.sticker.evaluation.judging import Rate
from minisd.sticker.evaluation.prompt_suites import SUITES


@pytest.fixture(autouse=True)
def few_reference_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what the prompts leave open."""
    monkeypatch.setattr("minisd.sticker.evaluation.diversity._REFERENCE_COUNT", 50)


FEW = ("--count", "2", "--suites", "held-out counts, single")


def test_rates_of_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_one_scene(sd: StableDiffusion, count: int, seed: int, **more: Any) -> InversionQuality:
        return measure_inversion(sd, 1, seed, steps=30, **more)

    monkeypatch.setattr("minisd.cli.measurements.measure_inversion", of_one_scene)
    files = ("--json", str(tmp_path / "rates.json"), "--sheet", str(tmp_path / "sheet.png"))
    asked = ("--count", "2", "--suites", "held-out counts, held-out template, single")
    assert main(["eval", *asked, "--steps", "2", "--seed", "3", "--pointing", "--inversion", *files]) == 0
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert (rates["prompts a suite"], rates["seed"], rates["steps"]) == (2, 3, 2)
    assert [name for name in rates if name in SUITES] == ["single", "held-out counts", "held-out template"]
    assert list(rates["single"]) == ["exact", "object", "colour", "shape", "count"]
    single = rates["single"]["exact"]
    assert 0 <= single["low"] <= single["rate"] <= single["high"] <= 1
    assert rates["autoencoder"]["mean_psnr"] >= rates["autoencoder"]["worst_psnr"] > 15
    assert rates["autoencoder"]["exact"]["count"] == 2
    assert 0 <= rates["free attributes"]["a circle"]["colours"]["distance"] <= 1
    assert set(rates["pointing"]) == {"single", "two"}
    assert rates["inversion"]["refine 2"]["mean_psnr"] > 20
    assert Image.open(tmp_path / "sheet.png").size == (8 * 134 - 6, 198)  # images of the held-out suites only
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("autoencoder: ", 'free in "a shape"', "pointing", "refine 0"))


def test_clip_and_distances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisd.cli.measurements.RETRIEVAL_SCENES", 30)
    path = tmp_path / "rates.json"
    assert main(["eval", "--count", "2", "--suites", "single", "--steps", "1", "--clip", "--json", str(path)]) == 0
    looked = json.loads(path.read_text())["clip"]
    assert looked["hard negatives"]["count"] == looked["text to image"]["count"] == 30
    assert looked["text to image"]["rate"] > 0.5
    assert looked["pictures"] == 10
    assert looked["distances"]["drawn"]["frechet"] > looked["distances"]["autoencoder"]["frechet"]  # images of one step
    choice = looked["best of 4, count"]
    assert choice["any"]["count"] == choice["first"]["count"] == 1
    assert choice["any"]["rate"] >= choice["chosen"]["rate"]
    assert 0 <= choice["auc"] <= 1
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("hard negatives", "chosen of 4", "image to text", "Frechet", "10 images"))


def test_subject_and_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def edits(sd: StableDiffusion, count: int, seed: int, folder: Path, label: str) -> EditRates:
        return EditRates({0.5: Rate(1, count)}, Rate(2, count))

    monkeypatch.setattr("minisd.cli.measurements.measure_edits", edits)
    path = tmp_path / "rates.json"
    few = ("--count", "1", "--suites", "single", "--steps", "1")
    assert main(["eval", *few, "--subject", "--edits", "4", "--json", str(path)]) == 0
    rates = json.loads(path.read_text())
    assert rates["subject"]["count"] == 50
    assert rates["subject"]["rate"] == 0  # the model does not know it
    assert rates["edits"]["eta 0.5"]["rate"] == 0.25
    assert rates["edits"]["best eta"]["rate"] == 0.5
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("of a sks shape in 50 contexts", "eta 0.5", "best eta"))
    assert main(["eval", *few, "--edits", "0"]) == 2
    assert "--edits is 0" in capsys.readouterr().err


def test_a_student_beside_its_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisd.sticker.evaluation.students.REPEATS", 1)
    path, few = tmp_path / "rates.json", ("--count", "2", "--suites", "single", "--steps", "1")
    assert main(["eval", *few, "--model", "sticker-fast", "--teacher", "sticker", "--json", str(path)]) == 0
    measured = json.loads(path.read_text())["student"]
    assert measured["seconds"] > 0
    assert measured["seconds of the teacher"] > 0
    assert "prediction error" not in measured  # its steps are longer than those of its teacher
    assert "s for an image of 4 steps, its teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "teacher", "message"),
    [
        ("sticker", "sticker-depth", "--teacher is sticker-depth, whose UNet has other sizes"),
        ("sticker-fast", "sticker-fast", "--teacher is sticker-fast, which has learned guidance"),
    ],
)
def test_what_is_no_teacher(model: str, teacher: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--count", "1", "--suites", "single", "--model", model, "--teacher", teacher]) == 2
    assert message in capsys.readouterr().err


def test_suites_with_unknown_words_are_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sd = weights_loader.load("sticker")
    sd.defaults = replace(sd.defaults, words="a red circle")
    monkeypatch.setattr(weights_loader, "load", lambda name: sd)
    assert main(["eval", "--count", "1", "--steps", "1", "--suites", "single, position"]) == 0
    printed = capsys.readouterr().out
    assert "position          skipped: the model was not trained on the words" in printed
    assert "single            exact" in printed


def test_a_painter_gets_rates_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_loader, "load", lambda name: Painter())
    assert main(["eval", "--count", "1", "--json", str(tmp_path / "rates.json")]) == 0
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert all(rate["rate"] == 1 for name in SUITES for rate in rates[name].values())
    assert "exact 100.0 %" in capsys.readouterr().out


def test_features_are_reused_in_the_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter()
    monkeypatch.setattr(weights_loader, "load", lambda name: painter)
    files = ("--json", str(tmp_path / "rates.json"))
    assert main(["eval", "--count", "1", "--suites", "single", "--reuse-features", "3", *files]) == 0
    assert painter.reused == {1, 3}  # 1: what prompts leave free
    assert json.loads((tmp_path / "rates.json").read_text())["reuse_features"] == 3
    assert main(["eval", "--reuse-features", "0"]) == 2


def test_previews_are_judged_in_the_suites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the preview decoder draws is judged: of a black one nothing is right, and it is far from the exact one."""
    sd, asked = weights_loader.load("sticker"), ("--count", "2", "--suites", "single", "--steps", "4")
    monkeypatch.setattr(weights_loader, "load", lambda name: sd)
    found = []
    for k in range(2):
        path = tmp_path / f"{k}.json"
        assert main(["eval", *asked, "--preview-decoder", "--json", str(path)]) == 0
        found.append(json.loads(path.read_text()))
        sd.preview_decoder.conv_out.weight.data.zero_()  # type: ignore[union-attr]
    trained, black = (each["previews"] for each in found)
    assert trained["mean_psnr"] >= trained["worst_psnr"] > 20 > black["mean_psnr"]
    assert trained["early_psnr"] > 15
    assert found[1]["single"]["exact"]["rate"] == 0
    assert "previews: PSNR to the exact decoder " in capsys.readouterr().out
    sd.preview_decoder = None
    assert main(["eval", *asked, "--preview-decoder"]) == 2
    assert "has no preview decoder" in capsys.readouterr().err


def test_existing_files_are_kept_and_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_loader, "load", lambda name: pytest.fail("the model was loaded first"))
    for name in ("rates.json", "sheet.png"):
        (tmp_path / name).write_text("mine")
    for option, name in (("--json", "rates.json"), ("--sheet", "sheet.png")):
        assert main(["eval", option, str(tmp_path / name)]) == 8
        assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "rates.json").read_text() == "mine"
    assert main(["eval", "--suites", "single,double"]) == 2
    assert "'single,double', expected one or more of single,two" in capsys.readouterr().err
    assert main(["eval", "--seed", "10000001"]) == 2


def test_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_loader, "load", lambda name: Painter())
    (tmp_path / "rates.json").write_text("mine")
    assert main(["eval", *FEW, "--json", str(tmp_path / "rates.json"), "--overwrite"]) == 0
    assert json.loads((tmp_path / "rates.json").read_text())["seed"] == 0


def test_a_sheet_marks_the_wrong_images_and_writes_the_prompts() -> None:
    prompts = ["a red circle"] * 3
    right, wrong = (judge_prompts(Painter(*draw), prompts, 0) for draw in ((), (in_other_colours,)))  # type: ignore[arg-type]
    sheet = contact_sheet({"single": wrong, "held-out pairs": right, "held-out counts": wrong})
    assert sheet.size == (8 * 134 - 6, 128 + 5 * 14)  # twice as large, above five lines
    corners = [sheet.getpixel((134 * k, 0)) for k in range(6)]
    assert [corner == (255, 0, 0) for corner in corners] == [False, True] * 3  # one image of each suite in turn
    cells = [np.asarray(sheet.crop((134 * k, 128, 134 * k + 128, sheet.height)).convert("L")) for k in range(6)]
    assert np.array_equal(cells[0], cells[2])
    assert (cells[1] < 128).sum() > (cells[0] < 128).sum() > 0  # "WRONG: " is more letters
    many = judge_prompts(Painter(), ["a red circle"] * 40, 0)  # type: ignore[arg-type]
    assert contact_sheet({"held-out pairs": many, "held-out counts": many}).size == (8 * 134 - 6, 8 * 204 - 6)
