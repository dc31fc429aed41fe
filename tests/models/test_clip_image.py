"""CLIP's image half and the whole against transformers' CLIPModel: vectors, logits, and its numbers."""

from dataclasses import replace

import pytest
import torch
from support.small_clip import CLIPS, clip_like, oracle_clip
from torch import Tensor, nn

from minisd.configs import SD1_TEXT, CLIPImageConfig, CLIPTextConfig
from minisd.errors import InputError
from minisd.models import CLIP, CLIPImageTransformer

pytest.importorskip("transformers")

VECTORS = {"rtol": 0, "atol": 1e-5}


def pictures(config: CLIPImageConfig, batch: int = 3, seed: int = 0) -> Tensor:
    """Pixels in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, config.image_size, config.image_size, generator=generator) * 2 - 1


def normalised(pixels: Tensor, config: CLIPImageConfig) -> Tensor:
    """What the reference expects in their place."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (config.mean, config.std))
    return ((pixels + 1) / 2 - mean) / std


def token_ids(batch: int = 4, seed: int = 0) -> Tensor:
    """Start token, words, end token (the largest id) at different places, padding with it."""
    ids = torch.randint(0, 298, (batch, 77), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 298
    for row, end in enumerate((2, 76, 30, 11)[:batch]):
        ids[row, end:] = 299
    return ids


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize("shape", CLIPS)
@torch.no_grad()
def test_vectors_and_logits(shape: str, gain: float) -> None:
    oracle = oracle_clip(shape, gain=gain)
    clip = clip_like(oracle)
    pixels, ids = pictures(clip.image_encoder.config), token_ids()
    expected = oracle(input_ids=ids, pixel_values=normalised(pixels, clip.image_encoder.config))
    images, texts = clip.embed_images(pixels), clip.embed_texts(ids)
    torch.testing.assert_close(images, expected.image_embeds, **VECTORS)
    torch.testing.assert_close(texts, expected.text_embeds, **VECTORS)
    torch.testing.assert_close(clip(pixels, ids), expected.logits_per_image, **VECTORS)
    assert clip(pixels, ids).shape == (3, 4)
    for vectors in (images, texts):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-6)
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3  # parity of constants would prove nothing


@pytest.mark.parametrize("shape", CLIPS)
@torch.no_grad()
def test_states(shape: str) -> None:
    """Of every token, before the class token's is taken."""
    oracle = oracle_clip(shape)
    image = clip_like(oracle).image_encoder
    pixels = pictures(image.config)
    expected = oracle.vision_model(normalised(pixels, image.config)).last_hidden_state
    assert expected.shape == (3, 1 + image.config.patches, image.config.width)
    torch.testing.assert_close(image(pixels), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", CLIPS)
@torch.no_grad()
def test_parity_sees_each_wrong_epsilon(shape: str) -> None:
    """The tolerance of the vectors does not accept another epsilon in any one norm that decides something."""
    clip = clip_like(oracle_clip(shape, gain=0.03))
    pixels = pictures(clip.image_encoder.config)
    right = clip.embed_images(pixels)
    for name, norm in clip.image_encoder.named_modules():
        if isinstance(norm, nn.LayerNorm):
            eps, norm.eps = norm.eps, norm.eps * 0.1
            assert (clip.embed_images(pixels) - right).abs().max() > VECTORS["atol"], name
            norm.eps = eps


@torch.no_grad()
def test_patches_see_each_other_whatever_their_order() -> None:
    """Not causal, as the text half is: the first token, the class token, sees the last patch."""
    clip = clip_like(oracle_clip("gelu"))
    pixels = pictures(clip.image_encoder.config, batch=1)
    changed = pixels.clone()
    changed[..., -4:, -4:] = 1
    states, others = clip.image_encoder(pixels), clip.image_encoder(changed)
    assert (states[0, 0] - others[0, 0]).abs().max() > 1e-3
    assert [layer.attention.causal for layer in clip.image_encoder.layers] == [False] * 2
    assert [layer.attention.causal for layer in clip.text_encoder.layers] == [True] * 4


@pytest.mark.parametrize("shape", [(1, 3, 32, 31), (1, 3, 64, 64), (3, 32, 32), (1, 1, 32, 32), (1, 4, 32, 32)])
def test_pictures_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    clip = clip_like(oracle_clip("gelu"))
    with pytest.raises(InputError, match=r"expected \(B, 3, 32, 32\)") as caught:
        clip.embed_images(torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_halves_of_unlike_projections_are_refused() -> None:
    text = CLIPTextConfig(vocab_size=30, width=16, layers=1, heads=2, mlp_width=16)
    image = CLIPImageConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2, mlp_width=16, projection_width=8)
    with pytest.raises(InputError, match="None, the image half to 8"):
        CLIP(text, image)
    CLIP(replace(text, projection_width=8), image)


def test_official_sizes() -> None:
    """Of CLIP ViT-L/14: 427,616,513 parameters, as openai/clip-vit-large-patch14 has."""
    with torch.device("meta"):
        image = CLIPImageTransformer(CLIPImageConfig())
        clip = CLIP(replace(SD1_TEXT, projection_width=768), CLIPImageConfig())
    assert sum(p.numel() for p in image.parameters()) == 303_966_208
    assert sum(p.numel() for p in clip.parameters()) == 427_616_513
    assert image.position_embedding.weight.shape == (257, 1024)
    assert len(clip.state_dict()) == len(dict(clip.named_parameters()))  # no buffers


def test_official_numbers() -> None:
    config = CLIPImageConfig()
    assert (config.layers, config.heads, config.width, config.norm_eps) == (24, 16, 1024, 1e-5)
    assert config.activation == "quick_gelu"
    with torch.device("cpu"):
        small = replace(config, image_size=8, patch_size=4, width=8, layers=1, heads=1, mlp_width=8, projection_width=4)
        text = CLIPTextConfig(vocab_size=30, width=8, layers=1, heads=1, mlp_width=8, projection_width=4)
    assert CLIP(text, small).logit_scale.exp().item() == pytest.approx(1 / 0.07)
