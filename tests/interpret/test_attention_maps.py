"""Word heat maps: equal to attention computed by hand, for any size and batch; the image stays the same."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.small import oracle_unet, randomise, small_pipeline, unet_like
from torch import Tensor

from minisd.configs import UNetConfig
from minisd.errors import InputError
from minisd.interpret.attention_maps import AttentionMaps, attention_weights, overlay, record_attention, resize_map
from minisd.models import UNet
from minisd.pipeline import StableDiffusion

PROMPT = "red zebra above blue cat"  # zebra: tokens 2 to 6
CALL: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "output_type": "latent", "height": 20, "width": 28}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    """Three levels, with attention in the upper two; latents of 10 x 14 halve to 5 x 7 and 3 x 4."""
    small = small_pipeline(sd2=True)
    config = UNetConfig(
        channels=(32, 64, 64),
        depths=(1, 2, 0),
        heads=(2, 4, 4),
        layers_per_block=1,
        context_width=64,
        sample_size=16,
        norm_groups=8,
        only_cross_attention=(False, False, False),
    )
    return StableDiffusion(
        small.tokenizer, small.text_encoder, small.vae, randomise(UNet(config), 4), small.scheduler, small.defaults
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_recording_does_not_change_the_image(sd: StableDiffusion, guidance_scale: float) -> None:
    plain = sd(PROMPT, guidance_scale=guidance_scale, **CALL).images
    with record_attention(sd) as maps:
        recorded = sd(PROMPT, guidance_scale=guidance_scale, **CALL).images
    assert torch.equal(recorded, plain)
    assert maps.maps
    assert torch.equal(sd(PROMPT, guidance_scale=guidance_scale, **CALL).images, plain)  # and no hook is left


def by_hand(sd: StableDiffusion, x: Tensor, t: Tensor, prompt: str) -> list[Tensor]:
    """Weights (h, w, 77) of each cross-attention layer for one image, softmax(q k^T) of the layer's inputs."""
    found: list[Tensor] = []
    sizes = {140: (10, 14), 35: (5, 7), 12: (3, 4)}
    text = sd.encode_prompt([prompt])
    handles = []

    def record(module: Any, args: Any) -> None:
        q, k = module.q(args[0]), module.k(text)
        q, k = (each.unflatten(-1, (module.heads, -1)).movedim(2, 1) for each in (q, k))
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k).div(q.shape[-1] ** 0.5).softmax(-1).mean(1)[0]
        found.append(weights.unflatten(0, sizes[len(weights)]))

    for name, module in sd.unet.named_modules():
        if name.endswith("attention2"):
            handles.append(module.register_forward_pre_hook(record))
    with torch.no_grad():
        sd.unet(x, t, text)
    for handle in handles:
        handle.remove()
    return found


def test_a_heat_map_is_the_mean_of_the_attention_computed_by_hand(sd: StableDiffusion) -> None:
    """With guidance, a batch, a size that is not square and does not halve evenly, and a word of five tokens."""
    prompts, x = ["blue dog", PROMPT], torch.randn(2, 4, 10, 14, generator=torch.Generator().manual_seed(1))
    with record_attention(sd) as maps:
        steps = list(sd.denoise(prompts, "blurry", latents=x, num_inference_steps=2, guidance_scale=4.0))
    expected, layers = [], 0
    for step, latents in enumerate((x, steps[0].latents)):
        for weights in by_hand(sd, latents[1:], steps[step].t, PROMPT):
            word = weights[:, :, 2:7].sum(-1)
            expected.append(F.interpolate(word[None, None], (10, 14), mode="bilinear")[0, 0])
            layers += 1
    got = maps.heat_map("zebra", PROMPT, picture=1)
    assert len(maps.maps) == layers == 2 * 10
    assert got.shape == (10, 14)
    assert (got - torch.stack(expected).mean(0)).abs().max() < 1e-5 * got.max()
    first = maps.heat_map("zebra", PROMPT, picture=1, step=0)
    assert (first - torch.stack(expected[: layers // 2]).mean(0)).abs().max() < 1e-5 * first.max()
    assert (first - got).abs().max() > 1e-3 * got.max()


def test_layers_are_named_and_can_be_selected(sd: StableDiffusion) -> None:
    with record_attention(sd) as maps:
        sd([PROMPT] * 2, guidance_scale=3.0, **CALL)
    first = [(each.level, each.part, tuple(each.weights.shape[1:3])) for each in maps.maps if each.step == 0]
    assert (
        first
        == [
            (0, "down", (10, 14)),
            *[(1, "down", (5, 7))] * 2,
            (2, "middle", (3, 4)),
            *[(1, "up", (5, 7))] * 4,
            *[(0, "up", (10, 14))] * 2,
        ][: len(first)]
        or len(first) == 9
    )
    assert {each.step for each in maps.maps} == {0, 1, 2}
    assert all(each.weights.shape[0] == 2 and each.weights.shape[3] == 77 for each in maps.maps)
    assert all((each.weights.sum(-1) - 1).abs().max() < 1e-5 for each in maps.maps)
    for choice in ({"step": 1}, {"level": 1}, {"part": "up"}, {"step": 2, "level": 0, "part": "down"}):
        chosen = [each for each in maps.maps if all(getattr(each, name) == value for name, value in choice.items())]
        single = [each.weights[0, ..., 9] for each in chosen]
        expected = torch.stack([F.interpolate(w[None, None], (10, 14), mode="bilinear")[0, 0] for w in single]).mean(0)
        assert torch.allclose(maps.heat_map("cat", PROMPT, **choice), expected, atol=1e-7)


def test_the_weights_of_all_tokens_sum_to_one(sd: StableDiffusion) -> None:
    """Start, words and end, and the padding."""
    with record_attention(sd) as maps:
        sd(PROMPT, guidance_scale=1.0, **CALL)
    names = [sd.tokenizer.bos, "red", "zebra", "above", "blue", "cat", sd.tokenizer.eos]
    words = sum(maps.heat_map(name, PROMPT) for name in names)
    padding = torch.stack(
        [F.interpolate(m.weights[..., 11:].sum(-1)[:, None], (10, 14), mode="bilinear")[0, 0] for m in maps.maps]
    )
    assert (words + padding.mean(0) - 1).abs().max() < 1e-5


def test_every_kth_call_and_earlier_callbacks(sd: StableDiffusion) -> None:
    layer = sd.unet.middle.transformer.blocks[0].attention2
    rows: list[int] = []
    layer.on_weights = lambda weights: rows.append(len(weights))
    try:
        with record_attention(sd) as outer, record_attention(sd, every=2) as inner:
            sd(PROMPT, guidance_scale=3.0, **CALL)
        assert layer.on_weights is not None
        assert rows == [2, 2, 2]  # the earlier callback is also called inside the block
    finally:
        del layer.on_weights
    assert sorted({each.step for each in outer.maps}) == [0, 1, 2]
    assert sorted({each.step for each in inner.maps}) == [0, 2]
    assert all(module.on_weights is None for module in sd.unet.modules() if hasattr(module, "on_weights"))


def test_an_inner_callback_keeps_the_outer_one(sd: StableDiffusion) -> None:
    """As in training inside a recorder: both get all weights inside the block, and the outer one also after it."""
    weights: list[Tensor] = []
    with record_attention(sd) as maps:
        with attention_weights(sd.unet, lambda level, part, each: weights.append(each)):
            sd(PROMPT, guidance_scale=1.0, **CALL)
        inside = len(maps.maps)
        assert len(weights) == inside > 0
        pairs = zip(weights, maps.maps, strict=True)
        assert all(torch.equal(one.mean(1).flatten(), other.weights.flatten()) for one, other in pairs)
        sd(PROMPT, guidance_scale=1.0, **CALL)
    assert (len(weights), len(maps.maps)) == (inside, 2 * inside)
    assert all(module.on_weights is None for module in sd.unet.modules() if hasattr(module, "on_weights"))


def test_the_hooks_are_removed_after_an_error(sd: StableDiffusion) -> None:
    with pytest.raises(KeyError), record_attention(sd):
        raise KeyError
    assert all(module.on_weights is None for module in sd.unet.modules() if hasattr(module, "on_weights"))
    assert not sd.unet._forward_pre_hooks


def test_layers_that_attend_only_to_the_text_count_twice() -> None:
    """In the upscaler, the first attention of these layers also reads the text."""
    small = small_pipeline()
    small.unet = unet_like(oracle_unet("x4"))
    count = len([None for name, _ in small.unet.named_modules() if name.endswith("attention2")])
    only = sum(getattr(module, "only_cross_attention", False) for module in small.unet.modules())
    assert only > 0
    with record_attention(small) as maps, torch.no_grad():
        small.unet(torch.randn(1, 7, 16, 24), 5, torch.randn(1, 77, 48), torch.tensor([3]))
    assert len(maps.maps) == count + only


def test_runs_do_not_mix(sd: StableDiffusion) -> None:
    with record_attention(sd) as maps:
        sd(PROMPT, **CALL)
        with pytest.raises(InputError, match="clear"):
            sd(PROMPT, **{**CALL, "height": 32})
        with pytest.raises(InputError, match="clear"):
            sd([PROMPT] * 2, **CALL)
        maps.clear()
        sd([PROMPT] * 2, **{**CALL, "height": 32})
    assert maps.heat_map("cat", PROMPT, picture=1).shape == (16, 14)


def test_what_is_refused(sd: StableDiffusion) -> None:
    with pytest.raises(InputError, match="every"), record_attention(sd, every=0):
        pass
    with record_attention(sd) as maps:
        with pytest.raises(InputError, match="no attention was recorded"):
            maps.heat_map("cat", PROMPT)
        sd(PROMPT, **CALL)
    for arguments, message in (
        ({"word": "dog"}, "is not among"),
        ({"picture": 1}, "picture is 1"),
        ({"step": 7}, "step 7, level None .* step 0, 1, 2, level 0, 1, 2, part down, middle, up"),
        ({"level": 3}, "no map has"),
        ({"part": "left"}, "no map has"),
    ):
        with pytest.raises(InputError, match=message):
            maps.heat_map(**{"word": "cat", "prompt": PROMPT, **arguments})
    with record_attention(sd) as maps:
        short = sd.encode_prompt([PROMPT])[:, :5]
        sd(prompt_embeds=short, guidance_scale=1.0, **CALL)
    assert maps.heat_map("red", PROMPT).shape == (10, 14)
    with pytest.raises(InputError, match="is token 9 of the prompt, but the run had 5"):
        maps.heat_map("cat", PROMPT)


def test_overlay() -> None:
    heat = torch.zeros(4, 6)
    heat[1, 4] = 1
    picture = Image.new("RGB", (60, 40), "white")
    shown = np.asarray(overlay(picture, heat, strength=1.0)).sum(-1)
    assert shown.shape == (40, 60)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert 10 <= row < 20
    assert 40 <= column < 50
    assert np.asarray(overlay(picture, heat, strength=0.0)).min() == 255
    flat = overlay(picture, torch.ones(4, 6), strength=1.0)  # a constant map gives no NaN
    assert len(flat.getcolors()) == 1
    assert resize_map(heat, (40, 60)).shape == (40, 60)
    for bad in (torch.zeros(1, 4, 6), torch.full((4, 6), float("nan"))):
        with pytest.raises(InputError, match="expected \\(h, w\\)"):
            overlay(picture, bad)
    with pytest.raises(InputError, match="strength"):
        overlay(picture, heat, strength=2)


def test_heat_maps_of_the_embedded_model_are_hot_inside_the_object() -> None:
    import weights_loader
    from minisd.images import from_pil
    from minisd.sticker.evaluation.pointing_game import mask_of
    from minisd.sticker.world.checker.check import check

    sd = weights_loader.load("sticker")
    prompt = "a red circle above a blue square"
    with record_attention(sd) as maps:
        picture = sd(prompt, seed=3).images[0]
    assert isinstance(maps, AttentionMaps)
    found = {thing.shape: thing for thing in check(from_pil(picture)[0], prompt).found}
    for noun in ("circle", "square"):
        heat = resize_map(maps.heat_map(noun, prompt), picture.size)
        inside = mask_of(found[noun], list(found.values()), picture.width)
        assert inside.flatten()[heat.argmax()]
        assert heat[inside].mean() > 1.3 * heat[~inside].mean()
