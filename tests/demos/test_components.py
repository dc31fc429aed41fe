"""Tokenizer, text transformer, noise schedule, autoencoder, UNet: what their demos show is what the parts compute."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from minisd.demos import schedule, text, tokenizer, unet, vae
from minisd.demos.demo import Demo
from minisd.demos.drawing import decoded
from minisd.demos.inputs import PROMPT, SCENE, noise_of
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.sticker.world.render import render
from minisd.tokenizer import PromptTruncated

STEPS = 4
OTHER = "a red circle above a green square"


def same(shown: Image.Image, expected: Image.Image) -> bool:
    """Whether two images are equal but for rounding."""
    return np.abs(np.asarray(shown, dtype=int) - np.asarray(expected.convert(shown.mode), dtype=int)).max() <= 2


def slot_colours(demo: Demo) -> list[str]:
    """The colour of each slot of the tokenizer's image, near its upper edge."""
    image, step = demo.panels[0].image, (tokenizer.WIDE + tokenizer.GAP, tokenizer.TALL + tokenizer.GAP)
    places = [(x, y) for y in range(0, image.height, step[1]) for x in range(0, image.width, step[0])]
    colours = [image.getpixel((x + tokenizer.WIDE // 2, y + 2)) for x, y in places]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours]


def test_the_tokenizer_fills_its_slots(sticker: StableDiffusion) -> None:
    demo = tokenizer.show(sticker, PROMPT)
    ids = sticker.tokenizer(PROMPT)[0].tolist()
    assert demo.table is not None
    assert demo.table.column("id") == ids[:9]
    assert demo.table.column("piece")[1:-1] == [f"{word}</w>" for word in PROMPT.split()]
    assert "7 words of" in demo.text[0]
    assert "9 of 77 slots" in demo.text[0]
    assert slot_colours(demo) == [
        tokenizer.SPECIAL, *(tokenizer.TINTS[k % 5] for k in range(7)), tokenizer.SPECIAL, *[tokenizer.PADDING] * 68
    ]  # fmt: skip


def test_pieces_of_one_word_have_one_colour(sticker: StableDiffusion) -> None:
    demo = tokenizer.show(sticker, "a zebra, red")
    pieces = len(sticker.tokenizer.tokenize("zebra"))
    assert pieces > 1
    kinds = demo.table.column("what") if demo.table else []
    assert kinds == ["start", "word 1", *["word 2"] * pieces, "word 3", "word 4", "end"]
    assert set(slot_colours(demo)[2 : 2 + pieces]) == {tokenizer.TINTS[1]}
    assert "In more than one piece: zebra." in demo.text


def test_a_long_prompt_shows_what_is_dropped(sticker: StableDiffusion) -> None:
    with pytest.warns(PromptTruncated):
        demo = tokenizer.show(sticker, "red " * 75 + "blue square")
    assert demo.text[-1].endswith("dropped: 'blue square'.")
    assert slot_colours(demo)[-1] == tokenizer.SPECIAL


def test_a_changed_word_changes_the_states_from_there_on(sticker: StableDiffusion) -> None:
    demo = text.show(sticker, PROMPT, OTHER, seed=3, num_inference_steps=STEPS)
    first, second = (sticker.encode_prompt([each])[0] for each in (PROMPT, OTHER))
    expected = ((first - second).norm(dim=-1) / first.norm(dim=-1))[:9]
    assert demo.table is not None
    changes = torch.tensor(demo.table.column("change of the state"))
    assert torch.allclose(changes, expected, atol=1e-4)
    assert changes[:6].tolist() == [0.0] * 6
    assert changes[6:].min() > 0.1
    assert demo.table.column("change of the vector")[7:] == [0.0, 0.0]
    assert "differ first in slot 6: 'blue' became 'green'" in demo.text[0]
    assert demo.text[1].startswith("The first 6 text states are equal")
    drawn = [sticker(each, seed=3, num_inference_steps=STEPS).images[0] for each in (PROMPT, OTHER)]
    for panel, image in zip(demo.rows[2].panels, drawn, strict=True):
        assert same(panel.image.resize(image.size, Image.Resampling.NEAREST), image)


def test_attention_of_the_text_transformer_is_causal(sticker: StableDiffusion) -> None:
    _, attention = text._states(sticker.text_encoder, sticker.tokenizer([PROMPT, OTHER]))
    assert torch.allclose(attention.sum(1), torch.ones(77), atol=1e-4)
    assert attention.triu(1).abs().max() == 0
    assert all(layer.attention.on_weights is None for layer in sticker.text_encoder.layers)


def test_the_schedule_exchanges_image_for_noise(sticker: StableDiffusion) -> None:
    demo = schedule.show(sticker, seed=1, num_inference_steps=10)
    assert demo.table is not None
    signal, noise, times = (demo.table.column(name) for name in ("signal", "noise", "t"))
    alpha_bars = sticker.scheduler.schedule.alpha_bars
    for t, a, b in zip(times, signal, noise, strict=True):
        assert a**2 + b**2 == pytest.approx(1)
        assert a**2 == pytest.approx(float(alpha_bars[t]), abs=1e-9)
    assert times[0] == 0
    assert times[-1] == len(alpha_bars) - 1
    assert signal == sorted(signal, reverse=True)
    x0 = sticker.encode(render([SCENE], sticker.vae.config.sample_size), torch.Generator().manual_seed(1))
    t = times[3]
    x = alpha_bars[t].sqrt().float() * x0 + (1 - alpha_bars[t]).sqrt().float() * noise_of(sticker, 1)
    assert same(demo.rows[0].panels[4].image, decoded(sticker, x)[0])
    assert "10 steps visits t = 999, 899, 799" in demo.text[2]


def test_the_autoencoder_says_how_small_and_what_is_lost(sticker: StableDiffusion) -> None:
    demo = vae.show(sticker)
    config, (h, w) = sticker.vae.config, sticker.unet.config.cells
    factor, channels = config.downscale, config.latent_channels
    times = 3 * factor**2 / channels
    assert f"{3 * h * w * factor**2:,} numbers" in demo.text[0]
    assert f"{times:.3g} times fewer, {factor} times smaller along each side" in demo.text[0]
    pixels = render([SCENE], h * factor)
    with torch.no_grad():
        z = sticker.vae.encode(pixels).mean * config.scaling_factor
    back = sticker.decode(z)
    quality = -10 * math.log10(float(((pixels - back) / 2).square().mean()))
    assert f"{quality:.1f} dB PSNR" in demo.text[1]
    there, channel_row, without = demo.rows
    assert same(there.panels[1].image, decoded(sticker, z)[0])
    limit = float(z.abs().max())
    assert len(channel_row.panels) == len(without.panels) == channels
    for k, panel in enumerate(channel_row.panels):
        grey = np.asarray(panel.image.resize((w, h), Image.Resampling.NEAREST))[..., 0] / 255 * 2 * limit - limit
        assert np.abs(grey - z[0, k].numpy()).max() < 0.01 * limit
    flat = z.clone()
    flat[:, 0] = z[:, 0].mean()
    assert same(without.panels[0].image, decoded(sticker, flat)[0])
    assert demo.table is not None
    assert max(demo.table.column("PSNR without it (dB)")) < quality - 5


@torch.no_grad()
def forward(unet: UNet, x: Tensor, t: Tensor, states: Tensor, muted: set[int], middle: bool = True) -> Tensor:
    """The UNet by hand, with some skips set to zero or without its middle."""
    time, x = unet.embed_time(t, x), unet.conv_in(x)
    skips = [x]
    for level in unet.down:
        for i in range(len(level.resnets)):
            x = level.block(i, x, time, states)
            skips.append(x)
        if level.resample is not None:
            x = level.resample(x)
            skips.append(x)
    x = unet.middle(x, time, states) if middle else x
    for level in unet.up:
        for i in range(len(level.resnets)):
            skip = skips.pop() * (len(skips) not in muted)
            x = level.block(i, torch.cat([x, skip], dim=1), time, states)
        if level.resample is not None:
            x = level.resample(x, size=skips[-1].shape[2:])
    return unet.conv_out(torch.nn.functional.silu(unet.norm_out(x)))


@torch.no_grad()
def test_parts_of_the_unet_are_switched_off(sticker: StableDiffusion) -> None:
    net, x, t = sticker.unet, noise_of(sticker, 0), torch.tensor(600)
    states, others = sticker.encode_prompt([PROMPT]), sticker.encode_prompt(["two green stars"])
    whole = net(x, t, states)
    count = len(unet._skip_readers(net))
    for k in (0, 2, count - 1):
        with unet.without(net, "skips", k):
            assert torch.allclose(net(x, t, states), forward(net, x, t, states, {k}), atol=1e-4)
    with unet.without(net, "skips"):
        assert torch.allclose(net(x, t, states), forward(net, x, t, states, {*range(count)}), atol=1e-4)
    with unet.without(net, "middle"):
        assert torch.allclose(net(x, t, states), forward(net, x, t, states, set(), middle=False), atol=1e-4)
    with unet.without(net, "cross-attention"):
        assert torch.equal(net(x, t, states), net(x, t, others))
    with unet.without(net, "time"):
        assert torch.equal(net(x, t, states), net(x, torch.tensor(20), states))
    with unet.without(net, "self-attention"):
        changed = net(x, t, states)
        assert not torch.allclose(changed, whole, atol=1e-2)
        assert not torch.equal(changed, net(x, t, others))
    assert torch.equal(net(x, t, states), whole)


def test_the_unet_misses_its_parts(sticker: StableDiffusion) -> None:
    demo = unet.show(sticker, PROMPT, seed=3, num_inference_steps=STEPS)
    plain = sticker(PROMPT, seed=3, num_inference_steps=STEPS).images[0]
    drawn = [panel.image.resize(plain.size, Image.Resampling.NEAREST) for panel in demo.rows[0].panels]
    assert len(drawn) == 1 + len(unet.PARTS)
    assert same(drawn[0], plain)
    assert not same(drawn[1], plain)
    assert not same(drawn[3], plain)
    assert demo.table is not None
    off = dict(demo.table.rows)
    assert max(off, key=lambda name: off[name]) == "skips"
    assert demo.text[0].startswith("Without the skips the prediction is off by")
    h, w = sticker.unet.config.cells
    assert min(off["cross-attention"], off["self-attention"]) > 5
    assert off["time"] > 20
    names = list(off)[len(unet.PARTS) :]
    assert names[0] == f"skip 0: {sticker.unet.config.channels[0]} x {h} x {w}"
    assert len(names) == len(unet._skip_readers(sticker.unet))
    assert all(0 < off[name] < off["skips"] for name in names)
