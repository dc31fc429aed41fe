"""What all demos have in common: they are described, they work with models of other sizes, they fit on a sheet."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageChops
from support.small import small_pipeline
from support.source_files import ROOT

from minisd.demos import DEMOS, Demo, Panel, Row, Table, charts, draw_sheet, find, samplers, sheet, surgery
from minisd.demos.drawing import COLOURS, fitted, text_width
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion

FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def shown() -> dict[str, Demo]:
    """Every demo of small random models, whose sizes differ from those of the embedded model."""
    small, by_depth = small_pipeline(), small_pipeline(in_channels=5)
    small.source = "sticker"  # the other way to the adapters is an error
    others: dict[str, Any] = {"surgery": {"prompt": "a red circle", "word": "circle", "other": "square"}}
    results = {}
    with warnings.catch_warnings(action="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "REFERENCE_STEPS", 2)
        patch.setattr(surgery, "WEIGHTS", (0.0, 1.0))
        for name, entry in DEMOS.items():
            model = {"depth": by_depth, "weights": "sticker"}.get(name, small)
            few = {key: value for key, value in FEW.items() if key in entry.settings}
            if name != "adapters":
                results[name] = entry.show(model, **few, **others.get(name, {}))
    return results


@pytest.mark.parametrize("name", [name for name in DEMOS if name != "adapters"])
def test_a_demo_describes_what_it_shows(name: str, shown: dict[str, Demo]) -> None:
    demo = shown[name]
    assert demo.title
    assert all(sentence.endswith(".") or sentence.endswith(".)") for sentence in demo.text)
    assert all(len(panel.alt.split()) >= 2 and panel.caption for panel in demo.panels)
    assert all((ROOT / path).is_file() for path in demo.source)
    assert demo.source
    assert list((ROOT / "notebooks").glob(f"{demo.notebook}_*.ipynb"))
    assert demo.table is None or all(len(row) == len(demo.table.columns) for row in demo.table.rows)
    assert demo.title in str(demo)


@pytest.mark.parametrize("name", [name for name in DEMOS if name != "adapters"])
def test_a_sheet_holds_every_image(name: str, shown: dict[str, Demo]) -> None:
    drawn = draw_sheet(shown[name])
    assert max(drawn.size) < 3000
    below = 0
    for row in shown[name].rows:
        first = row.panels[0].image
        below = top_of(first, drawn, below) + first.height


def top_of(part: Image.Image, whole: Image.Image, start: int) -> int:
    """The height from `start` on at which an image is at the left margin of a sheet, but for its frame of one pixel."""
    inner = part.convert("RGB").crop((1, 1, part.width - 1, part.height - 1))
    for top in range(start, whole.height - part.height + 1):
        at = (sheet.MARGIN + 1, top + 1)
        found = whole.crop((*at, at[0] + inner.width, at[1] + inner.height))
        if ImageChops.difference(found, inner).getbbox() is None:
            return top
    raise AssertionError("the image is not on the sheet")


def test_captions_are_wrapped_and_not_cut() -> None:
    lines = sheet.wrapped("several words that need more than one line", sheet.CAPTION, 100)
    assert " ".join(lines) == "several words that need more than one line"
    assert all(text_width(line, sheet.CAPTION) <= 100 for line in lines)
    wide = Panel("Donaudampfschifffahrtsgesellschaftskapitän", Image.new("RGB", (20, 20)), "a black square")
    assert draw_sheet(Demo("a", (), (Row("b", (wide,)),))).width >= text_width(wide.caption, sheet.CAPTION)
    many = Demo("a", (), (Row("b", (wide,) * 20),))
    assert draw_sheet(many).width <= sheet.WIDEST + 2 * sheet.MARGIN + 400


def test_small_images_become_squares_and_large_ones_small() -> None:
    assert fitted(Image.new("RGB", (16, 16))).size == (128, 128)
    assert fitted(Image.new("RGB", (128, 96))).size == (128, 96)
    assert fitted(Image.new("RGB", (1024, 512))).size == (256, 128)
    checked = fitted(Image.new("L", (2, 1), 0))
    assert checked.getcolors() == [(128 * 64, 0)]


def test_charts_have_their_colours_and_numbers() -> None:
    curves = [charts.Curve("rises", [(0, 0), (1, 1)]), charts.Curve("falls", [(0, 1), (1, 0)])]
    drawn = charts.draw_curves(curves, "across", "up", dots=True)
    colours = {f"#{r:02X}{g:02X}{b:02X}" for _, (r, g, b) in drawn.getcolors(100_000)}
    assert set(COLOURS[:2]) <= colours
    bars = charts.draw_bars([("half", 5.0), ("whole", 10.0)], " %")
    blue = [sum(bars.getpixel((x, y)) == (0, 114, 178) for x in range(bars.width)) for y in (12, 32)]
    assert blue[0] == pytest.approx(blue[1] / 2, abs=4)
    cells = charts.draw_cells([[0.0, 1.0], [None, 0.5]], ["a", "b"], ["c", "d"], 1.0)
    assert cells.width > cells.height


def test_a_table_aligns_its_columns() -> None:
    table = Table(("name", "number"), (("a", 1.5), ("longer", 1000)))
    assert str(table).splitlines() == ["name    number", "a        1.500", "longer   1,000"]


def test_the_nearest_name_is_suggested() -> None:
    assert find("vae").name == "vae"
    with pytest.raises(InputError, match="there is no demo 'gidance'; did you mean guidance"):
        find("gidance")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("text", {"other": "a red circle above a blue square"}, "have the same tokens"),
        ("guidance", {"guidance_scale": 1}, "guidance_scale is 1, expected another number"),
        ("guidance", {"seed": -1}, "seed is -1"),
        ("callback", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("heat-maps", {"word": "triangle"}, "'triangle' is not among"),
        ("image-to-image", {"strength": 2}, "strength is 2"),
        ("surgery", {"other": "two words"}, "use words with the same number of tokens"),
        ("depth", {}, "needs a model for depth, but sticker is for text"),
        ("tokenizer", {"prompt": 3}, "prompt is int, expected text"),
    ],
)
def test_bad_settings_are_refused(
    name: str, settings: dict[str, Any], message: str, sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(StableDiffusion, "_denoise", no_work)
    show: Callable[..., Demo] = DEMOS[name].show
    with pytest.raises(InputError, match=message):
        show(sticker, **settings)
