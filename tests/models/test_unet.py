"""The UNet against UNet2DConditionModel: networks of each official shape, transformers, times, numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small import UNETS, copy_weights, oracle_unet, randomise, unet_like
from torch import nn

from minisd.configs import SD1_UNET, SD2_UNET, UNetConfig
from minisd.models.layers import Conv2d
from minisd.models.unet import GEGLU, SpatialTransformer, UNet, sinusoids
from weights_loader.names import diffusers as names

pytest.importorskip("diffusers")
from diffusers.models.transformers.transformer_2d import Transformer2DModel

BLOCK = {"rtol": 0, "atol": 1e-5}
NETWORK = 1e-4  # of the output's scale


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    scale = expected.abs().max()
    assert 1e-6 < scale < 1e4  # neither dead nor exploded: the comparison would say nothing
    return float((got - expected).abs().max() / scale)


def inputs(unet: UNet, size: tuple[int, int] = (15, 11), batch: int = 2, scale: float = 1.0) -> tuple:
    """Latents, text; then keyword arguments for ours and for the oracle."""
    config = unet.config
    ours: dict[str, torch.Tensor] = {}
    theirs: dict[str, Any] = {}
    if config.class_count is not None:
        ours["noise_level"] = theirs["class_labels"] = torch.arange(batch) + 3
    if config.pooled_width is not None:
        width = config.size_embedding_width
        numbers = torch.tensor([[1024.0, 768, 0, 8, 512, 640]]).repeat(batch, 1) + torch.arange(batch)[:, None]
        pooled = noise(batch, config.pooled_width - 6 * width, seed=4)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers}
        ours["pooled"] = torch.cat([pooled, sinusoids(numbers.flatten(), width).reshape(batch, -1)], 1)
    latents = noise(batch, config.in_channels, *size, seed=1) * scale
    return latents, noise(batch, 77, config.context_width, seed=2), ours, theirs


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize(("scale", "size"), [(1.0, (15, 11)), (1e-3, (15, 11)), (1.0, (8, 24))])
@pytest.mark.parametrize("shape", UNETS)
@torch.no_grad()
def test_network(shape: str, size: tuple[int, int], scale: float, gain: float) -> None:
    oracle = oracle_unet(shape, gain=gain)
    unet = unet_like(oracle)
    latents, text, ours, theirs = inputs(unet, size, scale=scale)
    expected = oracle(latents, 601, text, **theirs).sample
    assert relative_error(unet(latents, 601, text, **ours), expected) < NETWORK


@pytest.mark.parametrize("shape", UNETS)
@torch.no_grad()
def test_network_parity_sees_each_wrong_epsilon(shape: str) -> None:
    """The tolerance of the test above does not accept another epsilon in the norms of one kind."""
    unet = unet_like(oracle_unet(shape, gain=0.03))
    latents, text, ours, _ = inputs(unet, (8, 12), scale=1e-3)
    right = unet(latents, 601, text, **ours)
    for kind, wrong in (("resnets", 1e-6), ("transformer", 1e-5), ("norm_out", 1e-6)):
        norms = [m for n, m in unet.named_modules() if isinstance(m, nn.GroupNorm) and kind in n]
        eps = norms[0].eps
        for norm in norms:
            norm.eps = wrong
        assert relative_error(unet(latents, 601, text, **ours), right) > NETWORK, kind
        for norm in norms:
            norm.eps = eps


@pytest.mark.parametrize(
    "t",
    [
        0,
        999,
        500.5,
        torch.tensor(37),
        torch.tensor(499.75),
        torch.tensor([3, 998]),
        torch.tensor([0.25, 731.5]),
    ],
    ids=str,
)
@torch.no_grad()
def test_timesteps_of_any_kind(t: Any) -> None:
    oracle = oracle_unet("sd1")
    unet = unet_like(oracle)
    latents, text, _, _ = inputs(unet, (8, 12))
    got = unet(latents, t, text)
    assert relative_error(got, oracle(latents, t, text).sample) < NETWORK
    rows = torch.as_tensor(t).expand(2)
    torch.testing.assert_close(
        got, torch.cat([unet(latents[i, None], rows[i], text[i, None]) for i in (0, 1)]), **BLOCK
    )
    assert relative_error(unet(latents, 450, text), got) > 100 * NETWORK  # the time does matter


@pytest.mark.parametrize(("scale", "gain"), [(1.0, 1.0), (1e-3, 1.0), (1e-3, 1e-2)])
@pytest.mark.parametrize("only_cross", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("linear", [False, True])
@torch.no_grad()
def test_spatial_transformer(linear: bool, depth: int, only_cross: bool, scale: float, gain: float) -> None:
    oracle = Transformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=32,
        num_layers=depth,
        cross_attention_dim=24,
        norm_num_groups=8,
        use_linear_projection=linear,
        only_cross_attention=only_cross,
    )
    randomise(oracle, 1, gain)
    config = UNetConfig(norm_groups=8, context_width=24, linear_projection=linear)
    table = {a[2:]: b[2:] for a, b in names.transformer("x", "x", depth).items()}
    ours = copy_weights(lambda: SpatialTransformer(config, 32, 4, depth, only_cross), table, oracle)
    x, text = noise(2, 32, 9, 5) * scale, noise(2, 77, 24, seed=1)
    torch.testing.assert_close(ours(x, text), oracle(x, encoder_hidden_states=text).sample, **BLOCK)


@pytest.mark.parametrize("shape", UNETS)
@torch.no_grad()
def test_guidance_shares_what_comes_before_the_text(shape: str) -> None:
    """Text of 2B rows for B latents is both halves in one call, as if the latents were given twice."""
    unet = unet_like(oracle_unet(shape))
    latents, text, ours, _ = inputs(unet, (8, 12))
    halves = torch.cat([text, noise(2, 77, unet.config.context_width, seed=7)])
    if "pooled" in ours or "noise_level" in ours:
        ours = {name: value[:1] for name, value in ours.items()}
    twice = unet(
        torch.cat([latents, latents]), 333, halves, **{k: v.repeat(4, *[1] * (v.ndim - 1)) for k, v in ours.items()}
    )
    assert relative_error(unet(latents, 333, halves, **ours), twice) < 1e-5


def test_texts_that_do_not_go_with_the_latents_are_refused() -> None:
    unet = unet_like(oracle_unet("sd1"))
    for pictures, texts in ((2, 1), (2, 3)):
        with torch.no_grad(), pytest.raises(ValueError, match=f"{pictures} cannot be repeated to {texts} rows"):
            unet(noise(pictures, 4, 8, 12), 1, noise(texts, 77, 24))


def test_watching_all_attention_changes_nothing() -> None:
    """Every cross-attention seen, from above to below and up again; the output stays."""
    unet = unet_like(oracle_unet("sd1"))
    latents, text, _, _ = inputs(unet, (8, 12))
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        fused = unet(latents, 10, text)
        for name, module in unet.named_modules():
            if name.endswith("attention2"):
                module.on_weights = seen.append
        watched = unet(latents, 10, text)
    assert relative_error(watched, fused) < 1e-5
    assert [tuple(w.shape) for w in seen] == [(2, 8, n, 77) for n in (96, 96, 24, 24, 6, 24, 24, 24, 96, 96, 96)]
    assert all((w.sum(-1) - 1).abs().max() < 1e-5 for w in seen)


# The numbers of the architecture, each by itself.


def meta_unet(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


@pytest.mark.parametrize(("config", "parameters"), [(SD1_UNET, 859_520_964), (SD2_UNET, 865_910_724)])
def test_official_size(config: UNetConfig, parameters: int) -> None:
    unet = meta_unet(config)
    assert sum(p.numel() for p in unet.parameters()) == parameters
    assert len(unet.state_dict()) == 686


def test_residual_blocks_and_the_last_norm_have_epsilon_1e_5() -> None:
    unet = meta_unet(SD1_UNET)
    norms = {n: m for n, m in unet.named_modules() if isinstance(m, nn.GroupNorm) and "transformer" not in n}
    assert len(norms) == 2 * 22 + 1
    assert {m.eps for m in norms.values()} == {1e-5}


def test_transformers_have_group_norm_epsilon_1e_6_and_layer_norm_1e_5() -> None:
    unet = meta_unet(SD1_UNET)
    inside = [m for n, m in unet.named_modules() if "transformer" in n]
    groups = [m for m in inside if isinstance(m, nn.GroupNorm)]
    layers = [m for m in inside if isinstance(m, nn.LayerNorm)]
    assert (len(groups), {m.eps for m in groups}) == (16, {1e-6})
    assert (len(layers), {m.eps for m in layers}) == (48, {1e-5})


def test_norm_groups_are_a_field() -> None:
    unet = meta_unet(UNetConfig((16, 24), (1, 0), heads=(2, 2), norm_groups=4, only_cross_attention=(False, False)))
    assert {m.num_groups for m in unet.modules() if isinstance(m, nn.GroupNorm)} == {4}


def test_time_embedding_is_cosines_then_sines() -> None:
    """At width 4 the frequencies are 1 and 1/100: frequency shift 0."""
    got = sinusoids(torch.tensor([0.0, 3.0]), 4)
    t = torch.tensor(3.0)
    expected = torch.stack([t.cos(), (t / 100).cos(), t.sin(), (t / 100).sin()])
    torch.testing.assert_close(got, torch.stack([torch.tensor([1.0, 1, 0, 0]), expected]))


def test_time_embedding_is_float32_for_half_precision() -> None:
    """999 in bfloat16 would be 1000: the sinusoids are computed before the cast."""
    t = torch.tensor([999])
    assert sinusoids(t, 320).dtype == torch.float32
    seen: list[torch.Tensor] = []
    unet = UNet(
        UNetConfig((32, 32), (1, 0), heads=(2, 2), context_width=16, only_cross_attention=(False, False))
    ).bfloat16()
    unet.time.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), t, torch.zeros(1, 77, 16, dtype=torch.bfloat16))
    assert torch.equal(seen[0], sinusoids(t, 32).bfloat16())


def test_geglu_gates_with_the_second_half_and_the_erf_gelu() -> None:
    layer = randomise(GEGLU(4), 0)
    x = noise(2, 3, 4) * 3
    with torch.no_grad():
        h = x @ layer.expand.weight.T + layer.expand.bias
        values, gates = h[..., :16], h[..., 16:]
        expected = (values * gates * 0.5 * (1 + torch.erf(gates / 2**0.5))) @ layer.contract.weight.T
        torch.testing.assert_close(layer(x), expected + layer.contract.bias, **BLOCK)
    assert (F.gelu(gates) - F.gelu(gates, approximate="tanh")).abs().max() > 1e-4  # so the test would see that one


def test_downsampling_pads_symmetrically() -> None:
    unet = meta_unet(SD1_UNET)
    steps = [level.resample for level in unet.down[:-1]]
    assert [(s.conv.padding, s.conv.stride, s.pad_right_below) for s in steps] == [((1, 1), (2, 2), False)] * 3
    assert unet.down[-1].resample is None


def test_heads_are_eight_a_level_in_sd1_and_64_channels_wide_in_sd2() -> None:
    for config, expected in ((SD1_UNET, {320: 8, 640: 8, 1280: 8}), (SD2_UNET, {320: 5, 640: 10, 1280: 20})):
        modules = meta_unet(config).modules()
        attentions = [m for m in modules if type(m).__name__ == "Attention"]
        assert len(attentions) == 32
        assert {m.q.in_features: m.heads for m in attentions} == expected


def test_attention_has_a_bias_at_its_output_only() -> None:
    attentions = [m for m in meta_unet(SD1_UNET).modules() if type(m).__name__ == "Attention"]
    assert all(m.q.bias is None and m.k.bias is None and m.v.bias is None for m in attentions)
    assert all(m.out.bias is not None for m in attentions)


def test_projection_around_transformers_is_a_convolution_in_sd1_and_linear_in_sd2() -> None:
    for config, kind in ((SD1_UNET, Conv2d), (SD2_UNET, nn.Linear)):
        middle = meta_unet(config).middle.transformer
        assert type(middle.proj_in) is kind
        assert type(middle.proj_out) is kind


def test_upscaler_reads_text_twice_but_not_in_its_last_level_nor_its_middle() -> None:
    """Shapes cannot tell: there the width equals the text's."""
    unet = unet_like(oracle_unet("x4"))
    cross = {
        name: module.only_cross_attention
        for name, module in unet.named_modules()
        if type(module).__name__ == "TransformerBlock"
    }
    assert {name[: name.index(".transformer")] for name, only in cross.items() if only} == {
        "down.1",
        "down.2",
        "up.1",
        "up.2",
    }
    assert {name[: name.index(".transformer")] for name, only in cross.items() if not only} == {
        "down.3",
        "up.0",
        "middle",
    }
