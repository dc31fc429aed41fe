"""The forty lines draw the image that the pipeline draws, bit for bit."""

from dataclasses import replace

import pytest
import torch
from support.small import small_pipeline

import weights_loader
from minisd import minimal
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, DPMSolverMultistep, Euler, EulerAncestral, Heun


def draw(sd: StableDiffusion, prompt: str, **settings: float) -> torch.Tensor:
    return minimal.text_to_image(
        sd.tokenizer,
        sd.text_encoder,
        sd.unet,
        sd.vae,
        sd.scheduler,
        prompt,
        seed=3,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("sd2", [False, True])
@pytest.mark.parametrize("sampler", [DDIM, Euler, EulerAncestral, Heun, DPMSolverMultistep])
def test_it_is_the_pipeline(sampler: type, sd2: bool) -> None:
    sd = small_pipeline(sd2=sd2)
    sd.scheduler = sampler.in_place_of(sd.scheduler)
    expected = sd("a red cat", seed=3, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
    assert torch.equal(draw(sd, "a red cat", steps=4, guidance_scale=3.0), expected)


def test_the_embedded_model() -> None:
    sd = weights_loader.load("sticker")
    expected = sd("a red circle", seed=3, num_inference_steps=10, output_type="pt").images
    scale = sd.defaults.guidance_scale
    pixels = draw(sd, "a red circle", steps=10, guidance_scale=scale)
    assert torch.equal(pixels, expected)
    assert not torch.equal(draw(sd, "a red circle", steps=10, guidance_scale=scale + 1), expected)
    assert replace(sd.defaults) == sd.defaults
