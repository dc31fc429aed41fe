"""Previews of a pipeline: another decoder for the same latents; the exact one stays the default."""

import pytest
import torch
from support.small import randomise, small_pipeline

from minisd.configs import PreviewDecoderConfig
from minisd.errors import InputError, NumericalError
from minisd.models import PreviewDecoder
from minisd.pipeline import StableDiffusion

LATENTS = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sd() -> StableDiffusion:
    pipeline = small_pipeline()
    pipeline.preview_decoder = randomise(PreviewDecoder(PreviewDecoderConfig(8, (1, 1))))
    return pipeline


def test_it_decodes_the_latents_of_the_unet(sd: StableDiffusion) -> None:
    assert sd.preview_decoder is not None
    with torch.no_grad():
        expected = sd.preview_decoder(LATENTS).clamp(-1, 1)
    got = sd.preview(LATENTS)
    assert got.shape == (3, 3, 8, 12)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert got.std() > 0.01
    assert sd.preview(1000 * LATENTS).abs().max() <= 1


def test_the_exact_decoder_stays_the_default(sd: StableDiffusion) -> None:
    with_it = sd("a cat", seed=1, num_inference_steps=2, output_type="pt").images
    sd.preview_decoder = None
    assert torch.equal(sd("a cat", seed=1, num_inference_steps=2, output_type="pt").images, with_it)


def test_one_that_is_missing_or_does_not_fit(sd: StableDiffusion) -> None:
    sd.preview_decoder = None
    with pytest.raises(InputError, match=r"has no preview decoder; set sd\.preview_decoder = .*madebyollin/taesd"):
        sd.preview(LATENTS)
    for config, message in [
        (PreviewDecoderConfig(8, (1, 1), latent_channels=16), "reads 16 channels .* expected 4 channels and 2 times"),
        (PreviewDecoderConfig(8, (1, 1, 1)), "enlarges 4 times, expected 4 channels and 2 times"),
    ]:
        sd.preview_decoder = PreviewDecoder(config)
        with pytest.raises(InputError, match=message):
            sd.preview(LATENTS)


def test_pixels_that_are_not_finite(sd: StableDiffusion) -> None:
    assert sd.preview_decoder is not None
    sd.preview_decoder.conv_out.weight.data[0] = torch.nan
    with pytest.raises(NumericalError, match=r"preview are not finite: 1 of its weights hold NaN .*conv_out\.weight"):
        sd.preview(LATENTS)


def test_it_moves_with_the_pipeline(sd: StableDiffusion) -> None:
    sd.to(torch.bfloat16)
    assert sd.preview_decoder is not None
    assert sd.preview_decoder.conv_in.weight.dtype == torch.bfloat16
    pixels = sd.preview(LATENTS)
    assert pixels.dtype == torch.float32
    sd.to(torch.float32)
    assert (sd.preview(LATENTS) - pixels).abs().max() < 0.1
