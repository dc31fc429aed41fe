"""The text transformer against CLIPTextModel: states, one layer, the pooled vector, and its numbers."""

import pytest
import torch
import torch.nn.functional as F
from support.small import TEXTS, oracle_text, text_like
from torch import nn

from minisd.configs import SD1_TEXT, SD2_TEXT, CLIPTextConfig
from minisd.models.clip import ACTIVATIONS, CLIPTextTransformer, quick_gelu

pytest.importorskip("transformers")

BLOCK = {"rtol": 0, "atol": 1e-5}
NETWORK = 1e-4  # of the output's scale


def token_ids(batch: int = 3, length: int = 77, seed: int = 0) -> torch.Tensor:
    """Start token, words, end token (the largest id) at different places, padding with it."""
    ids = torch.randint(0, 298, (batch, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 298
    for row, end in enumerate((2, length // 2, length - 1)[:batch]):
        ids[row, end:] = 299
    return ids


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    scale = expected.abs().max()
    assert 1e-6 < scale < 1e4
    return float((got - expected).abs().max() / scale)


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize("length", [77, 20])
@pytest.mark.parametrize("shape", TEXTS)
@torch.no_grad()
def test_states(shape: str, length: int, gain: float) -> None:
    oracle = oracle_text(shape, gain=gain)
    ids = token_ids(length=length)
    assert relative_error(text_like(oracle)(ids), oracle(ids).last_hidden_state) < NETWORK


@pytest.mark.parametrize("shape", TEXTS)
@torch.no_grad()
def test_parity_sees_each_wrong_epsilon(shape: str) -> None:
    """The tolerance of the test above does not accept another epsilon in any one norm."""
    text = text_like(oracle_text(shape, gain=0.03))
    right = text(token_ids())
    for name, norm in text.named_modules():
        if isinstance(norm, nn.LayerNorm):
            eps, norm.eps = norm.eps, norm.eps * 0.1
            assert relative_error(text(token_ids()), right) > NETWORK, name
            norm.eps = eps


@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("shape", TEXTS)
@torch.no_grad()
def test_layer(shape: str, gain: float) -> None:
    """One layer, from what the oracle's layer got to what it made of it."""
    oracle = oracle_text(shape, gain=gain)
    theirs = next(m for n, m in oracle.named_modules() if n.endswith("layers.1"))
    seen: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["y"] = output[0] if isinstance(output, tuple) else output

    theirs.register_forward_hook(keep, with_kwargs=True)
    oracle(token_ids())
    torch.testing.assert_close(text_like(oracle).layers[1](seen["x"]), seen["y"], **BLOCK)


@pytest.mark.parametrize("projection", [None, 40])
@torch.no_grad()
def test_pooled(projection: int | None) -> None:
    """The state at the first end token; `eos_token_id` 2 in the official configs means the largest id."""
    oracle = oracle_text("sd2", projection=projection)
    text, ids = text_like(oracle), token_ids()
    states, out = text(ids), oracle(ids)
    expected = out.pooler_output if projection is None else out.text_embeds
    assert relative_error(text.pool(states, ids), expected) < NETWORK
    assert relative_error(states, out.last_hidden_state) < NETWORK


@torch.no_grad()
def test_sd2_takes_the_last_layer_but_one_and_the_final_norm() -> None:
    """A model with one layer less is the penultimate state of the whole one, normed."""
    whole = oracle_text("sd2", num_hidden_layers=5)
    cut = oracle_text("sd2", num_hidden_layers=4)
    cut.load_state_dict({name: whole.state_dict()[name] for name in cut.state_dict()})
    ids = token_ids()
    norm = next(m for n, m in whole.named_modules() if n.endswith("final_layer_norm"))
    expected = norm(whole(ids, output_hidden_states=True).hidden_states[-2])
    assert relative_error(text_like(cut)(ids), expected) < NETWORK
    assert relative_error(text_like(whole)(ids), expected) > 100 * NETWORK


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_states() -> None:
    text, ids = text_like(oracle_text("sd1")), token_ids(1)
    changed = ids.clone()
    changed[0, 40:] = 5
    assert torch.equal(text(ids)[0, :40], text(changed)[0, :40])
    assert not torch.equal(text(ids)[0, 40], text(changed)[0, 40])


@torch.no_grad()
def test_embedding_and_transforming_are_the_whole() -> None:
    """What textual inversion and word weights put in between."""
    text, ids = text_like(oracle_text("sd1")), token_ids()
    assert torch.equal(text.transform(text.embed(ids)), text(ids))
    by_hand = text.token_embedding.weight[ids[1, 7]] + text.position_embedding.weight[7]
    assert torch.equal(text.embed(ids)[1, 7], by_hand)


# The numbers of the architecture, each by itself.


def test_official_sizes() -> None:
    for config, parameters, tensors in ((SD1_TEXT, 123_060_480, 196), (SD2_TEXT, 340_387_840, 372)):
        with torch.device("meta"):
            text = CLIPTextTransformer(config)
        assert sum(p.numel() for p in text.parameters()) == parameters
        assert len(text.state_dict()) == tensors


def test_quick_gelu_of_clip_is_not_the_erf_gelu_of_openclip() -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(quick_gelu(x), x / (1 + (-1.702 * x).exp()))
    assert (quick_gelu(x) - F.gelu(x)).abs().max() > 1e-2
    assert {"quick_gelu": quick_gelu, "gelu": F.gelu} == ACTIVATIONS
    assert (SD1_TEXT.activation, SD2_TEXT.activation) == ("quick_gelu", "gelu")
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))


def test_layers_heads_and_epsilon() -> None:
    assert (SD1_TEXT.layers, SD1_TEXT.heads, SD1_TEXT.width, SD1_TEXT.norm_eps) == (12, 12, 768, 1e-5)
    assert (SD2_TEXT.layers, SD2_TEXT.heads, SD2_TEXT.width, SD2_TEXT.norm_eps) == (23, 16, 1024, 1e-5)


def test_no_projection_unless_the_checkpoint_has_one() -> None:
    config = CLIPTextConfig(vocab_size=30, width=16, layers=1, heads=2, mlp_width=16)
    assert not hasattr(CLIPTextTransformer(config), "text_projection")
