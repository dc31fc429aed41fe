"""The preview decoder against the decoder of AutoencoderTiny, and its numbers."""

from typing import Any

import pytest
import torch
from support.small import copy_weights, randomise
from torch import nn

from minisd.configs import TAESD, PreviewDecoderConfig
from minisd.errors import InputError
from minisd.models import PreviewDecoder
from weights_loader.names import diffusers as names
from weights_loader.preview_configs import preview_config, preview_json

pytest.importorskip("diffusers")
from diffusers import AutoencoderTiny

SHAPES = {
    "like TAESD": PreviewDecoderConfig(width=8, blocks_per_level=(1, 3, 3, 3)),
    "embedded": PreviewDecoderConfig(width=16, blocks_per_level=(1, 1, 1, 1)),
    "uneven": PreviewDecoderConfig(width=12, blocks_per_level=(2, 1, 4), latent_channels=16),
    "one level": PreviewDecoderConfig(width=4, blocks_per_level=(2,), latent_channels=3, out_channels=1),
}


def oracle(config: PreviewDecoderConfig) -> Any:
    return randomise(AutoencoderTiny.from_config(preview_json(config))).eval()


def ours(config: PreviewDecoderConfig, theirs: Any) -> PreviewDecoder:
    decoder = nn.ModuleDict({"decoder": theirs.decoder})  # without the encoder
    return copy_weights(lambda: PreviewDecoder(config), names.preview_decoder(config), decoder)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0], ids=["almost constant", "usual", "limited"])
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (33, 20)])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_decode(shape: str, size: tuple[int, int], scale: float) -> None:
    config = SHAPES[shape]
    theirs = oracle(config)
    latents = scale * torch.randn(2, config.latent_channels, *size, generator=torch.Generator().manual_seed(0))
    before, expected = latents.clone(), theirs.decode(latents).sample
    got = ours(config, theirs)(latents)
    assert expected.std() > 1e-3
    assert got.shape == (2, config.out_channels, config.downscale * size[0], config.downscale * size[1])
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert torch.equal(latents, before)


def test_configs_there_and_back_and_taesd_is_the_default_of_both() -> None:
    for config in (*SHAPES.values(), TAESD):
        assert preview_config(preview_json(config)) == config
    assert preview_config({}) == preview_config(dict(AutoencoderTiny().config)) == TAESD
    assert TAESD.downscale == 8


def test_values_that_no_network_has() -> None:
    for wrong in ({"width": 0}, {"blocks_per_level": ()}, {"blocks_per_level": (1,) * 11}, {"latent_channels": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            PreviewDecoderConfig(**wrong)  # type: ignore[arg-type]
