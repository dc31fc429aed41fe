"""Drawing: the steps arrive one by one, their last image is that of the pipeline, a run stops, nothing stays behind."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from minisd.app.drawing import PREVIEWS, Drawing, draw
from minisd.app.runs import Runs, Stopped
from minisd.demos.inputs import PROMPT
from minisd.interpret.attention_maps import overlay, record_attention
from minisd.pipeline import StableDiffusion

STEPS = 6
VISITOR, OTHER = SimpleNamespace(session_hash="visitor"), SimpleNamespace(session_hash="other")


def far(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of two images."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


def hooks(sd: StableDiffusion) -> int:
    """The hooks on the UNet, and its attention layers that report their weights."""
    modules = list(sd.unet.modules())
    watched = sum(getattr(module, "on_weights", None) is not None for module in modules)
    return watched + sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)


def alone(runs: Runs, sd: StableDiffusion) -> partial:
    return partial(runs.alone, sd, VISITOR.session_hash, [])


def test_the_steps_end_in_the_image_of_the_pipeline(sticker: StableDiffusion) -> None:
    drawing = Drawing(sticker, alone(Runs(), sticker))
    before = hooks(sticker)
    seen = []
    for step in drawing.steps(PROMPT, STEPS, seed=1, guidance_scale=3.0):
        seen.append(step.i)
        assert hooks(sticker) == before  # a visitor may leave between two steps
    assert seen == list(range(STEPS)) == [frame.step.i for frame in drawing.frames]
    with record_attention(sticker) as maps:
        expected = sticker(PROMPT, seed=1, num_inference_steps=STEPS, guidance_scale=3.0).images[0]
    assert far(drawing.frames[-1].noisy, expected) <= 2
    heat = drawing.heat_maps(PROMPT)
    assert list(heat) == ["a", "red", "circle", "above", "blue", "square"]
    assert far(heat["circle"], overlay(drawing.frames[-1].clean, maps.heat_map("circle", PROMPT))) <= 2
    assert far(heat["circle"], heat["square"]) > 50


def test_all_steps_but_the_last_are_previews(sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a preview decoder, and the page says so."""
    decoded: list[str] = []
    for name in ("decode", "preview"):
        own = getattr(sticker, name)
        monkeypatch.setattr(sticker, name, lambda latents, name=name, own=own: (decoded.append(name), own(latents))[1])
    said = []
    for expected in (["preview"] * (STEPS - 1) + ["decode"], ["decode"] * STEPS):
        pages = list(draw(sticker, alone(Runs(), sticker), [], PROMPT, seed=1, num_inference_steps=STEPS))
        assert decoded == expected
        said.append(PREVIEWS in pages[-1])
        decoded.clear()
        monkeypatch.setattr(sticker, "preview_decoder", None)
    assert said == [True, False]


def test_the_page_changes_with_every_step(sticker: StableDiffusion) -> None:
    notes: list[str] = []
    pages = list(draw(sticker, alone(Runs(), sticker), notes, PROMPT, seed=1, num_inference_steps=STEPS))
    assert len(pages) == STEPS + 1
    for k, page in enumerate(pages[:-1]):
        assert f"Step {k + 1} of {STEPS}, t = " in page
        assert f'<progress max="{STEPS}" value="{k + 1}"' in page
    assert pages[-1].count('type="radio"') == 7
    assert pages[-1].count("<img ") == pages[-1].count(" alt=") == 1 + 6 + 2 * STEPS
    assert "<script" not in "".join(draw(sticker, alone(Runs(), sticker), notes, "<script>", num_inference_steps=1))


def test_a_run_stops_at_the_next_call(sticker: StableDiffusion) -> None:
    runs = Runs()
    drawing, before = Drawing(sticker, alone(runs, sticker)), hooks(sticker)
    seen = []
    for step in drawing.steps(PROMPT, 50, seed=1):
        seen.append(step.i)
        if step.i == 1:
            runs.stop(OTHER)  # not this one's
        if step.i == 2:
            runs.stop(VISITOR)
    assert seen == [0, 1, 2]
    assert drawing.stopped
    assert hooks(sticker) == before
    runs.begin(VISITOR)
    assert len(list(Drawing(sticker, alone(runs, sticker)).steps(PROMPT, 2))) == 2


def test_a_demo_stops_at_the_next_call(sticker: StableDiffusion) -> None:
    runs, calls = Runs(), []

    def count(*_: object) -> None:
        calls.append(0)
        if len(calls) == 3:
            runs.stop(VISITOR)

    hook = sticker.unet.register_forward_pre_hook(count)
    try:
        with pytest.raises(Stopped), runs.alone(sticker, VISITOR.session_hash, []):
            sticker(PROMPT, num_inference_steps=50)
    finally:
        hook.remove()
    assert len(calls) in (3, 4)


def test_one_run_at_a_time(sticker: StableDiffusion) -> None:
    runs, inside, most = Runs(), 0, 0

    def work(visitor: str) -> None:
        nonlocal inside, most
        with runs.alone(sticker, visitor, []):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work, args=(f"visitor {k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_who_leaves_stops_only_a_run_of_theirs(sticker: StableDiffusion) -> None:
    runs = Runs()
    runs.stop(VISITOR)
    runs.leave(VISITOR)
    assert not runs._stopping
    with runs.alone(sticker, VISITOR.session_hash, []):
        runs.leave(OTHER)
        runs.leave(VISITOR)
        assert runs._stopping == {"visitor"}


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(gr.Error, match=message):
        yield


def test_what_the_library_refuses_is_shown(sticker: StableDiffusion) -> None:
    before = hooks(sticker)
    for settings, message in (
        ({"num_inference_steps": 0}, "num_inference_steps is 0, expected a whole number in 1..1000"),
        ({"num_inference_steps": 2, "seed": -1}, "seed is -1, expected"),
        ({"num_inference_steps": 2, "guidance_scale": 5000}, "guidance_scale is 5000, expected"),
    ):
        with refused(message):
            list(draw(sticker, alone(Runs(), sticker), [], PROMPT, **settings))
    assert hooks(sticker) == before
