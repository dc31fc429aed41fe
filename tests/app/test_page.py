"""The page: a tab for each demo, whose function returns what the demo returns, with the settings that were given."""

import base64
import functools
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

import weights_loader
from minisd.app import page as app_page
from minisd.app.inputs import INPUTS, given
from minisd.app.models import Models
from minisd.app.outputs import data_address, demo_html
from minisd.app.page import build
from minisd.demos import DEMOS, Demo, Panel, Row, Table
from minisd.demos.catalogue import Entry
from minisd.demos.inputs import PROMPT
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion

VISITOR = SimpleNamespace(session_hash="visitor")


def long_runs(page: gr.Blocks) -> list[Any]:
    """The functions that wait in the one queue: two of the drawing tab, then one for each demo."""
    return [each for each in page.fns.values() if each.concurrency_id == "model"]


def tab_of(page: gr.Blocks, name: str) -> Any:
    return long_runs(page)[2 + list(DEMOS).index(name)]


@pytest.fixture(scope="module")
def page(models: Models) -> gr.Blocks:
    return build(models)


def test_every_demo_has_a_tab_and_every_setting_an_input(page: gr.Blocks) -> None:
    tabs = [block.id for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == ["draw", *DEMOS]
    for entry in DEMOS.values():
        assert entry.settings.keys() <= INPUTS.keys()
        labels = {each.label for each in tab_of(page, entry.name).inputs}
        own = {INPUTS[name](None).label for name in entry.settings if name != "prompt"}
        assert own <= labels
        assert ("Prompt for all tabs" in labels) == ("prompt" in entry.settings)


def test_all_runs_wait_in_one_queue(page: gr.Blocks) -> None:
    runs = long_runs(page)
    assert len(runs) == 2 + len(DEMOS)
    assert {run.concurrency_limit for run in runs} <= {1, "default"}
    assert not page.analytics_enabled


def test_each_tab_returns_what_its_demo_returns(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, tuple[Any, dict[str, Any]]] = {}

    def instead_of(entry: Entry) -> Entry:
        @functools.wraps(entry.show)  # with the settings of the demo
        def show(sd: Any, **settings: Any) -> Demo:
            called[entry.name] = sd, settings
            return Demo(f"the result of {entry.name}", ("One.",), ())

        return replace(entry, show=show)

    monkeypatch.setattr(app_page, "DEMOS", {name: instead_of(entry) for name, entry in DEMOS.items()})
    page = build(models)
    for name, entry in DEMOS.items():
        tab = tab_of(page, name)
        shared = [each.label == "Prompt for all tabs" for each in tab.inputs]
        values = [
            "a green star" if is_prompt else each.value for each, is_prompt in zip(tab.inputs, shared, strict=True)
        ]
        html = tab.fn(VISITOR, *values)
        assert html == demo_html(Demo(f"the result of {name}", ("One.",), ()))
        sd, settings = called[name]
        assert sd == "sticker" if not entry.loads else sd is models.load(entry.model)
        defaults = {key: each.default for key, each in entry.settings.items() if each.default not in (None, "")}
        prompt = {"prompt": "a green star"} if "prompt" in entry.settings else {}
        assert settings == defaults | prompt


def test_a_weight_file_is_described(page: gr.Blocks, tmp_path: Path) -> None:
    tab = tab_of(page, "weights")
    assert [each.label for each in tab.inputs] == ["Weight file (empty: the model)"]
    file = weights_loader.resolve("sticker") / "adapters" / "night.safetensors"
    assert tab.fn(VISITOR, str(file)) == demo_html(DEMOS["weights"].show(file))
    assert "night.safetensors" in tab.fn(VISITOR, str(file))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no weights")
    with pytest.raises(gr.Error, match=r"bad\.safetensors"):
        tab.fn(VISITOR, str(bad))


def test_names_keep_their_capitals(page: gr.Blocks) -> None:
    text = " ".join(str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML))
    assert "Without and with a LoRA and a learned word. Model: sticker." in text
    assert "The latents x_t beside x0" in text


def test_a_tab_shows_the_real_demo(page: gr.Blocks, sticker: StableDiffusion) -> None:
    expected = DEMOS["tokenizer"].show(sticker, "two yellow hearts")
    assert tab_of(page, "tokenizer").fn(VISITOR, "two yellow hearts") == demo_html(expected)


def test_an_empty_prompt_is_the_demos_example(page: gr.Blocks, sticker: StableDiffusion) -> None:
    assert tab_of(page, "tokenizer").fn(VISITOR, "") == demo_html(DEMOS["tokenizer"].show(sticker, PROMPT))


def test_a_prompt_is_never_read_as_a_file(page: gr.Blocks, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a word")
    assert "secret" in tab_of(page, "tokenizer").fn(VISITOR, f"@{secret}")


def test_warnings_become_notes(page: gr.Blocks) -> None:
    html = tab_of(page, "tokenizer").fn(VISITOR, "red " * 100)
    assert html.count('<p class="note">Note: ') == 1


def test_errors_keep_their_sentence(page: gr.Blocks) -> None:
    tab = tab_of(page, "heat-maps")
    values = {"Word of the prompt": "triangle", "Prompt for all tabs": PROMPT}
    with pytest.raises(gr.Error, match="&#x27;triangle&#x27; is not among"):
        tab.fn(VISITOR, *(values.get(each.label, each.value) for each in tab.inputs))


@pytest.mark.parametrize("name", ["image", "mask_image", "depth_map"])
def test_an_upload_is_checked(name: str, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_text("no image")
    with pytest.raises(InputError, match=r"image\.png cannot be read as an image"):
        given([(name, str(file))])
    Image.new("RGB", (5, 4), "red").save(file)
    assert given([(name, str(file))])[name].size == (5, 4)
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    with pytest.raises(InputError, match="cannot be read as an image"):
        given([(name, str(file))])


def test_a_drawn_mask_is_checked(tmp_path: Path) -> None:
    drawn = data_address(Image.new("L", (8, 8), 255))
    file = tmp_path / "mask.png"
    Image.new("L", (3, 3)).save(file)
    assert given([("mask_image", str(file)), ("mask_image", drawn)])["mask_image"].size == (
        8,
        8,
    )  # the drawn one counts
    assert given([("mask_image", str(file)), ("mask_image", "")])["mask_image"].size == (3, 3)
    for bad, message in (
        ("data:text/html;base64,AAAA", "is no PNG image"),
        ("data:image/png;base64,?", "is damaged"),
        ("data:image/png;base64,AAAA", "cannot be read as an image"),
        ("data:image/png;base64," + "A" * 4_000_000, "is no PNG image"),
    ):
        with pytest.raises(InputError, match=message):
            given([("mask_image", bad)])


def test_numbers_that_may_be_empty() -> None:
    chosen = given([("num_inference_steps", "12"), ("guidance_scale", "2.5"), ("strength", ""), ("seed", None)])
    assert chosen == {"num_inference_steps": 12, "guidance_scale": 2.5}
    with pytest.raises(InputError, match="'many' is not a whole number"):
        given([("num_inference_steps", "many")])


def test_every_image_has_its_alternative_text() -> None:
    image = Image.new("RGB", (2, 2), "red")
    panels = (Panel("first <b>", image, 'a "red" square'), Panel("second", image, "the same"))
    table = Table(("name", "size (px)"), (("<i>", 1234), ("b", 0.5)))
    demo = Demo("A & B", ("One < two.",), (Row("row", panels),), table, ("minisd/tokenizer.py", "no/file.py"), "10")
    html = demo_html(demo, ["careful"])
    assert html.count("<img ") == html.count(" alt=") == html.count("<figcaption>") == 2
    for part in (
        "<h2>A &amp; B</h2>", "<p>One &lt; two.</p>", 'alt="a &quot;red&quot; square"', "first &lt;b&gt;",
        '<th scope="col">size (px)</th>', "<td>&lt;i&gt;</td><td>1,234</td>", "Note: careful",
        '<a href="source/minisd/tokenizer.py" target="_blank">minisd/tokenizer.py</a>, no/file.py',
        '<a href="source/notebooks/10_byte_pair_encoding.ipynb" target="_blank">lesson 10</a>',
    ):  # fmt: skip
        assert part in html
    raw = html.split("base64,")[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(raw))) as shown:
        assert shown.getpixel((0, 0)) == (255, 0, 0)


def test_a_given_model_serves_the_demos_of_its_task() -> None:
    models = Models("sticker-inpainting", "cpu")
    names = {entry.name: models.name_of(entry) for entry in DEMOS.values()}
    assert names.pop("inpainting") == names.pop("weights") == "sticker-inpainting"
    assert names.pop("depth") == "sticker-depth"
    assert {*names.values()} == {"sticker"}
    assert models.name_for("sticker") == "sticker"
