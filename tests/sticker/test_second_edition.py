"""Networks of the embedded model's second edition: images of 128 pixels, and the words that people type.

They ship as `sticker` once lessons, figures and tables are made with them; until then they are in tests/data.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import weights_loader
from minisd._internal.image_quality import psnr
from minisd.models import VAE, CLIPTextTransformer
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.dataset import VOCABULARY, training_scenes
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.tokenizer import Tokenizer
from weights_loader.loading import load_network

FOLDER = Path(__file__).parents[1] / "data" / "second_edition"
TYPED = ["draw a big red disc", "a violet heart, please", "2 tiny blue dots", "A HUGE GREEN BOX", "2 little pink stars"]


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    first = weights_loader.load("sticker")
    encoder, vae = load_network(FOLDER, CLIPTextTransformer, "text_encoder"), load_network(FOLDER, VAE, "vae")
    tokenizer = Tokenizer.from_folder(FOLDER / "tokenizer")
    defaults = replace(first.defaults, words=json.loads((FOLDER / "minisd.json").read_text())["words"])
    return StableDiffusion(tokenizer, encoder, vae, first.unet, first.scheduler, defaults)


def test_its_autoencoder_has_the_official_factor_and_the_latents_of_the_first(sd: StableDiffusion) -> None:
    first, scenes = weights_loader.load("sticker").vae, training_scenes(24, seed=1_000_000)
    pixels = render(scenes, sd.vae.config.sample_size)
    with torch.no_grad():
        known = first.encode(render(scenes, first.config.sample_size)).mean
        latents = sd.vae.encode(pixels).mean
        again = sd.vae.decode(latents).clamp(-1, 1)
    assert pixels[0].numel() == 48 * latents[0].numel()
    assert (latents - known).abs().mean() < 0.02 * known.std()
    assert psnr(pixels, again).mean() > 35
    small = F.interpolate(pixels, size=64, mode="area")
    enlarged = F.interpolate(small, size=128, mode="bicubic").clamp(-1, 1)  # the most that 64 pixels can hold
    assert psnr(pixels, again).mean() > psnr(pixels, enlarged).mean()


def test_it_knows_the_words_that_people_type(sd: StableDiffusion) -> None:
    assert set(sd.defaults.words.split()) == set(VOCABULARY.split())
    images = sd(TYPED, seed=1, output_type="pt").images
    assert images.shape[2:] == (128, 128)
    assert sum(check(image, prompt).exact for image, prompt in zip(images, TYPED, strict=True)) >= len(TYPED) - 1
