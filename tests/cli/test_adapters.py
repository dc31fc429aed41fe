"""`--lora FILE[:SCALE]` and `--embedding FILE[:TOKEN]`."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from support.small import small_pipeline

import weights_loader
from minisd.cli import main
from minisd.cli.inputs import split_option
from minisd.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, a LoRA for its attention and an embedding of two vectors."""
    folder = tmp_path_factory.mktemp("cli")
    sd = small_pipeline()
    weights_loader.save(sd, folder / "model")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in ("unet.mid_block.attentions.0", "unet.up_blocks.1.attentions.0"):
        for part in ("to_q", "to_k", "to_v"):
            width = 128 if "mid" in name else 64
            stem = f"{name}.transformer_blocks.0.attn1.{part}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, width, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(width, 4, generator=generator)
    safetensors.torch.save_file(tensors, folder / "lora.safetensors")
    torch.save({"<birb>": torch.randn(2, 64, generator=generator)}, folder / "learned_embeds.bin")
    return folder


def run(folder: Path, target: Path, *arguments: str, prompt: str = "a <birb> cat") -> int:
    common = [
        "--model",
        str(folder / "model"),
        "--steps",
        "2",
        "--seed",
        "5",
        "--scale",
        "1",
        "--quiet",
        "-o",
        str(target),
    ]
    return main([prompt, *common, *arguments])


def test_the_image_is_that_of_the_pipeline(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lora, word = f"{folder / 'lora.safetensors'}:0.5", f"{folder / 'learned_embeds.bin'}"
    assert run(folder, tmp_path / "a.png", "--lora", lora, "--lora", lora, "--embedding", word) == 0
    assert f"{word}  adds <birb>" in capsys.readouterr().out
    sd = weights_loader.load(folder / "model")
    weights_loader.load_embedding(sd, word)
    with_word = sd("a <birb> cat", num_inference_steps=2, seed=5).images[0]
    weights_loader.load_lora(sd, folder / "lora.safetensors", 0.5)
    weights_loader.load_lora(sd, folder / "lora.safetensors", 0.5)
    picture = Image.open(tmp_path / "a.png")
    assert picture.tobytes() == sd("a <birb> cat", num_inference_steps=2, seed=5).images[0].tobytes()
    assert picture.tobytes() != with_word.tobytes()
    assert picture.text["loras"] == str([lora, lora])
    assert picture.text["embeddings"] == str([word])


def test_another_token(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    word = f"{folder / 'learned_embeds.bin'}:<mine>"
    assert run(folder, tmp_path / "a.png", "--embedding", word, prompt="a <mine>") == 0
    assert "adds <mine>" in capsys.readouterr().out
    assert "loras" not in Image.open(tmp_path / "a.png").text


@pytest.mark.parametrize(
    ("arguments", "code", "quoted"),
    [
        (("--lora", "{}/missing.safetensors"), 2, "no such file"),
        (("--lora", "{}/lora.safetensors:much"), 2, "'much' is not a number"),
        (("--lora", "{}/lora.safetensors:nan"), 2, "scale is nan"),
        (("--lora", "{}/learned_embeds.bin"), 3, "--embedding"),
        (("--embedding", "{}/lora.safetensors"), 3, "--lora"),
        (("--embedding", "{}/learned_embeds.bin:cat"), 2, "exists already"),
        (("--model", "{}/lora.safetensors"), 3, "--lora"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, str], code: int, quoted: str
) -> None:
    option, value = arguments
    assert run(folder, tmp_path / "a.png", option, value.format(folder)) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert quoted in error
    assert not (tmp_path / "a.png").exists()


def test_names_with_colons(tmp_path: Path) -> None:
    plain, colon = tmp_path / "a.bin", tmp_path / "a.bin:0.5"
    plain.touch()
    assert split_option(str(plain)) == (plain, None)
    assert split_option(f"{plain}:") == (plain, None)
    assert split_option(f"{plain}:0.5") == (plain, "0.5")
    assert split_option(f"{plain}:<a:b>") == (plain, "<a:b>")
    colon.touch()
    assert split_option(str(colon)) == (colon, None)
    assert split_option(f"{colon}:2") == (colon, "2")
    with pytest.raises(InputError, match="no such file"):
        split_option(str(tmp_path / "b:c"))
