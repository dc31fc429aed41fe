"""Images of a class: drawn once, kept for the model and the prompt, continued after an interruption."""

from pathlib import Path

import pytest
import torch
from support.small import small_pipeline

from minisd.errors import InputError
from minisd.training.class_images import class_images


def test_images_are_drawn_once(tmp_path: Path) -> None:
    sd, lines = small_pipeline(), []
    sd.defaults = type(sd.defaults)(num_inference_steps=1)
    drawn = class_images(sd, "a dog", 5, tmp_path, lines.append)
    assert drawn.pixels.shape == (5, 3, 32, 32)
    assert drawn.captions == ["a dog"] * 5
    assert lines == ["class images: 4 of 5 drawn", "class images: 5 of 5 drawn"]
    (folder,) = tmp_path.iterdir()
    (folder / "00003.png").unlink()
    (folder / "00001.png").unlink()
    again = class_images(sd, "a dog", 5, tmp_path, lines.append)
    assert lines[2:] == ["class images: 2 of 2 drawn"]
    assert torch.equal(again.pixels, drawn.pixels)
    assert torch.equal(class_images(sd, "a dog", 2, tmp_path).pixels, drawn.pixels[:2])


def test_other_prompts_and_models_have_other_folders(tmp_path: Path) -> None:
    sd = small_pipeline()
    sd.defaults = type(sd.defaults)(num_inference_steps=1)
    class_images(sd, "a dog", 1, tmp_path)
    class_images(sd, "a cat", 1, tmp_path)
    with torch.no_grad():
        sd.unet.conv_in.bias += 1
    class_images(sd, "a cat", 1, tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_blank_images_are_left_out(tmp_path: Path) -> None:
    """Others are drawn in their place, once; a prompt that gives hardly any others is refused."""
    sd, lines = small_pipeline(), []
    sd.defaults = type(sd.defaults)(num_inference_steps=1)
    plain = class_images(sd, "a dog", 5, tmp_path / "a")
    decode, blank = sd.vae.decode, {0, 2, 3}
    drawn = iter(range(10**6))

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor([next(drawn) in blank for _ in latents])
        return torch.where(rows[:, None, None, None], 0.9 + 0.001 * decode(latents), decode(latents))

    sd.vae.decode = decoded  # type: ignore[method-assign]
    got = class_images(sd, "a dog", 2, tmp_path / "b", lines.append)
    assert lines[-1] == "class images: 3 of 5 are blank and left out"
    assert torch.equal(got.pixels, plain.pixels[[1, 4]])
    assert got.captions == ["a dog"] * 2
    count = len(lines)
    again = class_images(sd, "a dog", 2, tmp_path / "b", lines.append)
    assert lines[count:] == ["class images: 3 of 5 are blank and left out"]  # nothing was drawn
    assert torch.equal(again.pixels, got.pixels)
    assert len(class_images(sd, "a dog", 1, tmp_path / "b").captions) == 1
    blank.update(range(10**3))
    with pytest.raises(InputError, match="class_prompt is 'a cat', for which 20 of 20 images are blank"):
        class_images(sd, "a cat", 1, tmp_path / "c")


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class_images is 0"):
        class_images(small_pipeline(), "a dog", 0, tmp_path)
    with pytest.raises(InputError, match="class_prompt is empty"):
        class_images(small_pipeline(), " ", 1, tmp_path)
    with pytest.raises(InputError, match="class_prompt"):
        class_images(small_pipeline(), 3, 1, tmp_path)  # type: ignore[arg-type]
