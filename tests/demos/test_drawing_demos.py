"""Samplers, guidance, callback, heat maps, tasks, surgery, adapters, weights: what their demos show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import weights_loader
from minisd.demos import (
    adapters,
    callback,
    depth,
    guidance,
    heat_maps,
    image_to_image,
    inpainting,
    samplers,
    surgery,
    weights,
)
from minisd.demos.demo import Demo, Panel
from minisd.demos.drawing import decoded, pictures
from minisd.demos.inputs import PROMPT, SCENE, depth_of, mask_of, noise_of
from minisd.errors import InputError
from minisd.interpret.attention_maps import attention_weights, record_attention
from minisd.pipeline import StableDiffusion
from minisd.schedulers import Euler, Heun
from minisd.sticker.world.render import render

STEPS = 4


def same(panel: Panel, expected: Image.Image) -> bool:
    """Whether an image is shown, but for rounding."""
    return np.abs(np.asarray(panel.image, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2


def column(demo: Demo, title: str) -> list:
    assert demo.table is not None
    return demo.table.column(title)


def test_samplers_begin_together(sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "REFERENCE_STEPS", 8)
    before = sticker.scheduler
    demo = samplers.show(sticker, PROMPT, seed=3, num_inference_steps=STEPS)
    assert sticker.scheduler is before
    names = [kind.__name__ for kind in samplers.SAMPLERS]
    assert column(demo, "sampler") == names
    assert column(demo, "calls") == [2 * STEPS - 1 if name == "Heun" else STEPS for name in names]
    first = [row.panels[0] for row in demo.rows[:-1]]
    assert all(same(first[0], panel.image) for panel in first)  # one noise, one first prediction
    for kind in (Euler, Heun):
        sd = weights_loader.load("sticker")
        sd.scheduler = kind.in_place_of(sd.scheduler)
        drawn = sd(PROMPT, seed=3, num_inference_steps=STEPS, output_type="pt").images
        assert same(demo.rows[names.index(kind.__name__)].panels[-1], pictures(drawn)[0])
    apart = dict(zip(names, column(demo, "distance from the reference"), strict=True))
    assert max(apart, key=lambda name: apart[name]) == "EulerAncestral"
    assert apart["DDIM"] < 0.5


def test_paths_are_shares_of_noise_and_goal() -> None:
    noise, goal = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = samplers._shares([noise, 0.6 * noise + 0.8 * goal, goal], noise, goal)
    assert np.allclose(found, [(1, 0), (0.6, 0.8), (0, 1)], atol=1e-5)


@torch.no_grad()
def test_guidance_shows_both_predictions(sticker: StableDiffusion) -> None:
    demo = guidance.show(sticker, PROMPT, seed=3, num_inference_steps=STEPS, guidance_scale=3)
    x, t = noise_of(sticker, 3), torch.tensor(999)
    u, c = (sticker.unet(x, t, sticker.encode_prompt([each])) for each in ("", PROMPT))
    schedule = sticker.scheduler.schedule
    for row, output in zip(demo.rows[:3], (u, c, u + 3 * (c - u)), strict=True):
        x0 = schedule.x0_and_eps(x, output, schedule.alpha_bar(999))[0]
        assert same(row.panels[0], decoded(sticker, x0)[0])
    assert column(demo, "difference (of the size)")[0] == pytest.approx(float((c - u).norm() / c.norm()), rel=1e-3)
    assert float(demo.text[2].split("call: ")[1].rstrip(").")) < 1e-3
    drawn = [panel.image for panel in demo.rows[4].panels]
    assert [panel.caption for panel in demo.rows[4].panels] == ["scale 0", "scale 1", "scale 3", "scale 12"]
    plain = sticker(PROMPT, seed=3, num_inference_steps=STEPS, guidance_scale=3, output_type="pt").images
    assert same(demo.rows[4].panels[2], pictures(plain)[0])
    assert not same(demo.rows[4].panels[0], drawn[2])


def test_the_callback_sees_x_t_and_x0(sticker: StableDiffusion) -> None:
    demo = callback.show(sticker, PROMPT, seed=3, num_inference_steps=20)
    run = list(sticker.denoise(PROMPT, seed=3, num_inference_steps=20))
    kept = [int(panel.caption.split(",")[0].removeprefix("step ")) for panel in demo.rows[0].panels]
    assert kept == [0, 3, 6, 9, 12, 15, 18, 19]
    for row, name in zip(demo.rows[:2], ("latents", "x0"), strict=True):
        for place in (0, 3, 7):
            assert same(row.panels[place], decoded(sticker, getattr(run[kept[place]], name))[0])
    assert column(demo, "x_t from the result")[-1] == 0
    middle = len(run) // 2
    assert column(demo, "x0 from the result")[middle] < column(demo, "x_t from the result")[middle]


def test_heat_maps_are_those_of_the_library(sticker: StableDiffusion) -> None:
    demo = heat_maps.show(sticker, PROMPT, word="square", seed=3, num_inference_steps=STEPS)
    attention: list[Tensor] = []
    layers_read = attention_weights(sticker.unet, lambda level, part, weights: attention.append(weights))
    with record_attention(sticker) as maps, layers_read:
        sticker(PROMPT, seed=3, num_inference_steps=STEPS)
    assert column(demo, "word") == ["a", "red", "circle", "above", "blue", "square"]
    for word, share in zip(column(demo, "word"), column(demo, "share of the attention (%)"), strict=True):
        assert share == pytest.approx(100 * float(maps.heat_map(word, PROMPT).mean()), rel=1e-3)
    with_prompt = [weights[-1].mean((0, 1)) for weights in attention]  # (L,): the mean over heads and places
    by_hand = float(torch.stack(with_prompt)[:, 1 + PROMPT.split().index("square")].mean())
    assert column(demo, "share of the attention (%)")[-1] == pytest.approx(100 * by_hand, rel=0.02)
    assert hottest_of(maps.heat_map("circle", PROMPT))[0] < 8 <= hottest_of(maps.heat_map("square", PROMPT))[0]
    _, shared, steps, levels = demo.rows
    heat = maps.heat_map("square", PROMPT)
    assert hottest(shared.panels[-1], heat) == hottest_of(heat)
    assert len(steps.panels) == STEPS
    assert hottest(steps.panels[-1], heat) == hottest_of(maps.heat_map("square", PROMPT, step=STEPS - 1))
    layers = {(each.part, each.level) for each in maps.maps}
    assert len(levels.panels) == len(layers)
    assert levels.panels[0].caption == "down, level 1: 8 x 8 places"
    automatic = heat_maps.show(sticker, PROMPT, seed=3, num_inference_steps=STEPS)
    assert automatic.rows[2].title.startswith(("'square'", "'circle'"))


def hottest(panel: Panel, heat: Tensor) -> tuple[int, int]:
    """Row and column of the brightest cell of a map."""
    small = panel.image.convert("L").resize(tuple(heat.shape[::-1]), Image.Resampling.NEAREST)
    return hottest_of(torch.from_numpy(np.array(small)))


def hottest_of(values: Tensor) -> tuple[int, int]:
    row, place = divmod(int(values.flatten().argmax()), values.shape[1])
    return row, place


def test_image_to_image_begins_under_noise(sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_to_image, "STRENGTHS", (0.01, 0.2, 0.4, 1.0))
    demo = image_to_image.show(sticker, prompt="a blue star", seed=2, num_inference_steps=10)
    assert column(demo, "strength") == [0.2, 0.4, 1.0]  # 0.01 of 10 steps is none
    assert column(demo, "calls") == [2, 4, 10]
    kept = column(demo, "PSNR to the image (dB)")
    assert kept[0] > kept[-1] + 3
    pixels, draw = render([SCENE], sticker.vae.config.sample_size), torch.Generator().manual_seed(2)
    x0 = sticker.encode(pixels, draw)
    noise = torch.randn(x0.shape, generator=draw)
    t = int(sticker.scheduler.grid(10, 6).timesteps[0])  # strength 0.4 leaves out six of ten
    begun = sticker.scheduler.schedule.add_noise(x0, noise, t)
    assert same(demo.rows[1].panels[1], decoded(sticker, begun)[0])
    one = image_to_image.show(sticker, prompt="a blue star", strength=0.5, seed=2, num_inference_steps=STEPS)
    assert column(one, "calls") == [2]
    with pytest.raises(InputError, match="leaves no step"):
        image_to_image.show(sticker, strength=0.1, num_inference_steps=STEPS)


def test_inpainting_reads_mask_and_hole(inpainting_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpainting, "COUNT", 2)
    sd = inpainting_model
    demo = inpainting.show(sd, seed=1, num_inference_steps=6)
    read = demo.rows[1].panels
    names = [panel.caption.partition(",")[0] for panel in read]
    assert names == ["x_t"] * 4 + ["mask"] + ["image with hole"] * 4
    mask, cells = mask_of(sd, None, own_scene=True), sd.unet.config.cells
    small = np.asarray(read[4].image.convert("L").resize(cells[::-1], Image.Resampling.NEAREST))
    expected = torch.nn.functional.interpolate(mask, size=cells)[0, 0].bool()
    assert ((small > small.min()) == expected.numpy()).all()
    outside, inside = column(demo, "PSNR outside of the mask (dB)"), column(demo, "PSNR inside (dB)")
    assert min(outside) > 25
    assert max(inside) < 20
    given = {"image": render([SCENE], mask.shape[-1]), "mask_image": mask, "num_images_per_prompt": 2, "seed": 1}
    drawn = sd(inpainting.PROMPT, num_inference_steps=6, output_type="pt", **given).images
    assert all(same(panel, image) for panel, image in zip(demo.rows[2].panels, pictures(drawn), strict=True))


def test_blending_needs_no_inpainting_model(sticker: StableDiffusion) -> None:
    demo = inpainting.show(sticker, seed=1, num_inference_steps=STEPS)
    assert len(demo.rows[1].panels) == 4
    assert "knows no mask" in demo.text[0]
    assert min(column(demo, "PSNR outside of the mask (dB)")) > 20
    with pytest.raises(InputError, match="marks nothing or everything"):
        inpainting.show(sticker, mask_image=Image.new("L", (8, 8)), num_inference_steps=STEPS)


def test_the_image_follows_the_depth_map(depth_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "COUNT", 1)
    demo = depth.show(depth_model, seed=1, num_inference_steps=6)
    shares = column(demo, "overlap")
    assert min(shares) > 0.6
    read = np.asarray(demo.rows[0].panels[1].image.convert("L"))
    mirrored = np.asarray(demo.rows[1].panels[1].image.convert("L"))
    assert np.abs(read.astype(int) - mirrored[:, ::-1]).max() <= 2
    assert (read.min(), read.max()) == (0, 255)  # stretched to -1..1
    own, other = (float(word.rstrip(";.")) for word in demo.text[1].split() if word[0] == "0" and "." in word)
    assert own == pytest.approx(shares[0], abs=0.01)
    assert own > other + 0.3


def test_overlap_is_exact_for_a_rendered_scene(depth_model: StableDiffusion) -> None:
    near = depth_of(depth_model, None)[0, 0]
    pixels = render([SCENE], near.shape[0])[0]
    assert depth.overlap(pixels, near) > 0.9
    assert depth.overlap(pixels.flip(-1), near) < 0.2


def test_surgery_exchanges_and_mixes_words(sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "WEIGHTS", (0.0, 0.5, 1.0))
    demo = surgery.show(sticker, "a red circle", "circle", "star", seed=1, num_inference_steps=STEPS)
    assert float(demo.text[0].split("difference ")[1].split(")")[0]) < 1e-5
    ends = [
        pictures(sticker(each, seed=1, num_inference_steps=STEPS, output_type="pt").images)[0]
        for each in ("a red circle", "a red star")
    ]
    for row in demo.rows[:2]:
        assert same(row.panels[0], ends[0])
        assert same(row.panels[-1], ends[1])
    assert all(same(panel, ends[1]) for panel in demo.rows[2].panels)
    assert not same(demo.rows[0].panels[1], demo.rows[1].panels[1].image)
    to_first, to_last = column(demo, "distance from 'a red circle'"), column(demo, "from 'a red star'")
    assert to_first[0] == pytest.approx(0, abs=1e-5)
    assert to_last[-1] == pytest.approx(0, abs=1e-5)
    assert to_first == sorted(to_first)
    with pytest.raises(InputError, match="'square' is not among"):
        surgery.show(sticker, "a red circle", "square", "star")


def test_adapters_change_the_image_and_are_removed(sticker: StableDiffusion) -> None:
    before = {name: p.clone() for name, p in sticker.unet.state_dict().items()}
    demo = adapters.show(sticker, seed=1, num_inference_steps=STEPS)
    changes = column(demo, "mean change of a pixel (%)")
    assert column(demo, "adapter") == ["LoRA", "LoRA", "LoRA", "<candy>"]
    assert changes[0] == 0
    assert changes[2] > 20  # white became night
    assert not same(demo.rows[0].panels[2], demo.rows[0].panels[4].image)  # half of it is another change
    assert changes[3] > 0.5
    shares = [pink_share(panel) for panel in demo.rows[1].panels]
    assert min(shares[2:]) > 0.02  # a <candy> is a pink star
    assert max(shares[:2]) < 0.01
    plain = sticker("a red square", seed=1, num_images_per_prompt=2, num_inference_steps=STEPS, output_type="pt").images
    assert same(demo.rows[0].panels[1], pictures(plain)[1])
    night = np.asarray(demo.rows[0].panels[4].image.convert("L"))
    assert np.median(night) < 60
    assert "is 1 new row of 128 numbers" in demo.text[1]
    assert sticker.tokenizer.added == []
    assert all(torch.equal(p, before[name]) for name, p in sticker.unet.state_dict().items())


def pink_share(panel: Panel) -> float:
    red, green, blue = np.moveaxis(np.asarray(panel.image, dtype=int), 2, 0)
    return float(((red > 200) & (green < 180) & (blue > 130)).mean())


def test_other_models_need_a_file(sticker: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticker, "source", "sd15")
    with pytest.raises(InputError, match="give lora or embedding"):
        adapters.show(sticker)


def test_weights_are_counted(sticker: StableDiffusion) -> None:
    demo = weights.show()
    sizes = dict(zip(column(demo, "network"), column(demo, "parameters"), strict=True))
    for name in ("unet", "vae", "text_encoder"):
        assert sizes[name] == sum(p.numel() for p in getattr(sticker, name).parameters())
    assert "The UNet predicts v_prediction." in demo.text
    assert f"{sum(sizes.values()):,} parameters" in demo.text[1]
    folder = Path(weights_loader.resolve("sticker"))
    lora = weights.show(folder / "adapters" / "night.safetensors")
    assert "LoRA" in lora.text[0]
    with pytest.raises(InputError, match="no known model"):
        weights.show("nothing-here.safetensors")
