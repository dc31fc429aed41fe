"""Ranking by CLIP: which image is kept, and images of any size as CLIP's own preprocessing resizes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weights_loader
from minisd.cli import main
from minisd.errors import InputError
from minisd.images import from_pil, open_image
from minisd.interpret.clip_ranking import best_of, clip_scores, resize_and_crop
from minisd.sticker.world.checker.check import check


def test_the_best_of_each_group() -> None:
    scores = torch.tensor([0.1, 0.3, 0.2, -0.5, -0.4, -0.3])
    assert best_of(scores, 3) == [1, 5]
    assert best_of(scores, 1) == list(range(6))
    assert best_of(scores, 6) == [1]


@pytest.mark.parametrize("of", [0, 4, 7])
def test_scores_that_make_no_groups(of: int) -> None:
    with pytest.raises(InputError, match="6 scores do not make groups"):
        best_of(torch.zeros(6), of)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (91, 37), (20, 31)])
def test_images_are_resized_and_cropped_as_by_the_reference(size: tuple[int, int]) -> None:
    """The reference rounds to 1/255 while it resamples; images of 20 pixels are enlarged."""
    transformers = pytest.importorskip("transformers")
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture = small.resize(size[::-1], Image.Resampling.BICUBIC)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    )
    expected = 2 * processor(picture, return_tensors="pt")["pixel_values"] - 1
    got = resize_and_crop(from_pil(picture), 32)
    assert got.shape == (1, 3, 32, 32)
    assert (got - expected).abs().max() <= 2.5 * 2 / 255


def test_the_score_is_the_cosine_of_an_image_and_its_prompt() -> None:
    clip, tokenizer = weights_loader.load_clip("sticker")
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ["a red circle", "two blue stars", "a ring above a heart"]
    with torch.no_grad():
        cosines = clip.embed_images(pixels) @ clip.embed_texts(tokenizer(prompts)).T
    assert torch.allclose(clip_scores(clip, tokenizer, pixels, prompts), cosines.diagonal(), atol=1e-6)
    with pytest.raises(InputError, match="2 prompts for images of shape"):
        clip_scores(clip, tokenizer, pixels, prompts[:2])


def test_the_command_keeps_the_image_with_the_highest_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of six images two are kept, each the best of three; the printed seed generates it again."""
    target, prompt = tmp_path / "a.png", "four red circles"
    common = (prompt, "--steps", "4", "--quiet", "-o", str(target), "--overwrite")
    assert main([*common, "--seed", "7", "--count", "2", "--best-of", "3"]) == 0
    kept = [open_image(tmp_path / f"a-{k}.png") for k in (1, 2)]
    seeds = [int(picture.info["seed"]) for picture in map(Image.open, (tmp_path / "a-1.png", tmp_path / "a-2.png"))]
    assert seeds[0] in (7, 8, 9)
    assert seeds[1] in (10, 11, 12)
    clip, tokenizer = weights_loader.load_clip("sticker")
    drawn = weights_loader.load("sticker")(prompt, seed=7, num_images_per_prompt=6, num_inference_steps=4).images
    scores = clip_scores(clip, tokenizer, torch.cat([from_pil(each) for each in drawn]), [prompt] * 6)
    assert [seed - 7 for seed in seeds] == best_of(scores, 3)
    assert main([*common, "--seed", str(seeds[1])]) == 0
    assert np.abs(np.asarray(open_image(target), int) - np.asarray(kept[1], int)).max() <= 1
    assert f"seed {seeds[1]}" in capsys.readouterr().out
    assert Image.open(tmp_path / "a-1.png").info["best_of"] == "3"


def test_best_of_needs_a_clip_and_no_film(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "a.png")
    assert main(["a", "--best-of", "2", "--film", str(tmp_path / "f.png"), "-o", target]) == 2
    assert "--film would show every candidate" in capsys.readouterr().err
    assert main(["a", "--best-of", "0", "-o", target]) == 2
    assert "--best-of is 0" in capsys.readouterr().err
    assert main(["a", "--best-of", "2", "--clip", str(tmp_path / "none"), "-o", target]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_best_of_several_is_right_more_often() -> None:
    sd = weights_loader.load("sticker")
    clip, tokenizer = weights_loader.load_clip("sticker")
    prompts = [
        "two purple hearts",
        "four red circles",
        "five blue crosses",
        "three orange diamonds",
        "four pink triangles",
    ]
    first = chosen = 0
    for k, prompt in enumerate(prompts):
        call = {"num_images_per_prompt": 4, "num_inference_steps": 6, "output_type": "pt"}
        pixels = sd(prompt, seed=10 * k, **call).images
        right = [check(each, prompt).exact for each in pixels]
        chosen += right[best_of(clip_scores(clip, tokenizer, pixels, [prompt] * 4), 4)[0]]
        first += sum(right) / 4
    assert chosen >= first
    assert chosen >= 4
