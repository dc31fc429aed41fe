"""The embedded model: it is small, draws its prompts as well as its model card states, and agrees with diffusers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import weights_loader
from minisd._internal.image_quality import psnr
from minisd.images import from_pil, to_pil
from minisd.interpret.clip_ranking import resize_and_crop
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.dataset import VOCABULARY, training_scenes
from minisd.sticker.training.retrieval import hard_negative_accuracy, retrieval_accuracy
from minisd.sticker.world.captions import WORDS
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.shapes import SHAPES
from minisd.sticker.world.splits import HELD_OUT_PAIRS
from weights_loader.sources import resolve

TYPED = ["draw a big red disc", "a violet heart, please", "2 tiny blue dots", "A HUGE GREEN BOX", "2 little pink stars"]


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


def test_it_is_small_and_its_card_tells_how_to_train_it(sd: StableDiffusion) -> None:
    folder = resolve("sticker")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 24 * 2**20
    assert "minisd train" in (folder / "README.md").read_text()
    assert sd.tokenizer(["a red circle"]).shape == (1, 77)
    words = sd.defaults.words.split()
    assert set(words) == set(VOCABULARY.split()) <= set(WORDS)
    assert all(len(sd.tokenizer.tokenize(word)) == 1 for word in words)
    assert sd.unet.conv_in.weight.dtype == torch.float32
    assert str(weights_loader.inspect("sticker")).count("float16") == 3


def test_seeds_repeat_and_differ(sd: StableDiffusion) -> None:
    first, again, other = (np.asarray(sd("a red circle", seed=seed).images[0]) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_draws_as_well_as_its_card_states(sd: StableDiffusion) -> None:
    """Thresholds a little below the card's figures, so that only a broken model, sampler or loader fails."""
    card = json.loads((resolve("sticker") / "results.json").read_text())
    shapes, colours = (sorted(set(names) & set(sd.defaults.words.split())) for names in (SHAPES, COLOURS))
    prompts = [f"a {colour} {shape}" for colour in colours for shape in shapes if (shape, colour) not in HELD_OUT_PAIRS]
    prompts = prompts[::2]
    verdicts = [
        check(from_pil(image)[0], prompt) for prompt, image in zip(prompts, sd(prompts, seed=100).images, strict=True)
    ]
    colours = sum(verdict.colour for verdict in verdicts) / len(verdicts)
    exact = sum(verdict.exact for verdict in verdicts) / len(verdicts)
    assert colours >= card["single"]["colour"]["rate"] - 0.15
    assert exact >= card["single"]["exact"]["rate"] - 0.25
    assert colours > 0.7  # chance is one in six
    assert exact > 0.7  # and one in 24


def test_its_autoencoder_has_the_official_factor_and_its_edges_are_crisp(sd: StableDiffusion) -> None:
    scenes = training_scenes(24, seed=1_000_000)
    pixels = render(scenes, sd.vae.config.sample_size)
    with torch.no_grad():
        latents = sd.vae.encode(pixels).mean
        again = sd.vae.decode(latents).clamp(-1, 1)
    assert pixels[0].shape == (3, 128, 128)
    assert pixels[0].numel() == 48 * latents[0].numel()
    small = F.interpolate(pixels, size=64, mode="area")
    enlarged = F.interpolate(small, size=128, mode="bicubic").clamp(-1, 1)  # the most that 64 pixels can hold
    assert psnr(pixels, again).mean() > max(35, psnr(pixels, enlarged).mean())


def test_it_knows_the_words_that_people_type(sd: StableDiffusion) -> None:
    verdicts = [check(from_pil(image)[0], text) for text, image in zip(TYPED, sd(TYPED, seed=1).images, strict=True)]
    assert sum(verdict.exact for verdict in verdicts) >= len(TYPED) - 1


def test_guidance_and_negative_prompts_matter(sd: StableDiffusion) -> None:
    weak, strong, away = (
        np.asarray(sd("a red circle", seed=3, **arguments).images[0], dtype=float)
        for arguments in ({"guidance_scale": 0}, {}, {"negative_prompt": "a red circle"})
    )
    assert abs(weak - strong).max() > 50  # of 255: the object itself, in an image that is mostly white
    assert abs(away - strong).max() > 50


def test_diffusers_draws_the_same_image(sd: StableDiffusion, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = StableDiffusionPipeline.from_pretrained(resolve("sticker"), torch_dtype=torch.float32)
    oracle.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = {"num_inference_steps": 5, "guidance_scale": 3.0, "latents": noise, "output_type": "latent"}
    theirs = oracle("a red circle above a blue square", **arguments).images
    ours = sd("a red circle above a blue square", **arguments).images
    assert (theirs - ours).abs().max() <= 1e-4 * theirs.abs().max()


def test_its_clip_recognises_scenes(sd: StableDiffusion) -> None:
    """As well as the card states, with a margin for fewer scenes; and its text encoder is that of the pipeline."""
    card = json.loads((resolve("sticker") / "results.json").read_text())["clip"]
    clip, tokenizer = weights_loader.load_clip("sticker")
    assert tokenizer.vocab == sd.tokenizer.vocab
    with torch.no_grad():
        ids = tokenizer(["a red circle above a blue square"])
        assert torch.equal(clip.text_encoder(ids), sd.text_encoder(ids))
    found = retrieval_accuracy(clip, tokenizer, 200)
    for way in ("text to image", "image to text"):
        assert found[way] >= card[way]["rate"] - 0.05  # easier among fewer scenes
    assert hard_negative_accuracy(clip, tokenizer, 300) >= card["hard negatives"]["rate"] - 0.05
    assert min(found.values()) > 0.8
    pixels = from_pil(sd("a large red star", seed=1).images[0])
    pixels = resize_and_crop(pixels, clip.image_encoder.config.image_size)
    with torch.no_grad():
        logits = clip(
            pixels, tokenizer(["a large red star", "a large red ring", "a large blue star", "a small red star"])
        )
    assert logits[0].argmax() == 0


def test_transformers_gives_the_same_logits() -> None:
    transformers = pytest.importorskip("transformers")
    folder = resolve("sticker") / "clip"
    theirs = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    clip, tokenizer = weights_loader.load_clip("sticker")
    images = to_pil(render(training_scenes(3, seed=4), 64))
    ids = tokenizer(["a red circle", "a blue square left of a red star"])
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=processor(images, return_tensors="pt")["pixel_values"])
        got = clip(torch.cat([from_pil(picture) for picture in images]), ids)
    assert (got - expected.logits_per_image).abs().max() <= 1e-4 * got.abs().max()
