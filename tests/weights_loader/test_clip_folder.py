"""CLIP's folders: those of transformers in ours, ours in transformers, and those that do not fit, one sentence each."""

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from support.saved_models import copy, edit, edit_json
from support.small import small_tokenizer, write_tokenizer
from support.small_clip import CLIPS, oracle_clip, randomise_clip
from torch import Tensor

import weights_loader
from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import DeviceError, InputError, MinisdError, MismatchError, OutputError
from minisd.images import from_pil, to_pil
from minisd.models import CLIP

transformers = pytest.importorskip("transformers")

TEXTS = ["a red circle above a blue square", "a cat"]
WEIGHTS = "model.safetensors"


def small_clip(vocab_size: int) -> CLIP:
    """Ours, with random weights."""
    text = CLIPTextConfig(vocab_size, width=24, layers=2, heads=3, mlp_width=40, projection_width=16)
    image = CLIPImageConfig(
        image_size=20,
        patch_size=8,
        width=32,
        layers=3,
        heads=2,
        mlp_width=56,
        activation="gelu",
        projection_width=16,
        mean=(0.5, 0.25, 0.125),
        std=(0.5, 0.75, 0.25),
    )
    return randomise_clip(CLIP(text, image))


def pixels(clip: CLIP, batch: int = 2) -> Tensor:
    size = clip.image_encoder.config.image_size
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def their_logits(theirs: Any, clip: CLIP, ids: Tensor) -> Tensor:
    config = clip.image_encoder.config
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (config.mean, config.std))
    with torch.no_grad():
        return theirs(input_ids=ids, pixel_values=((pixels(clip) + 1) / 2 - mean) / std).logits_per_image


def our_logits(clip: CLIP, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return clip(pixels(clip), ids)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP as transformers saves it, with its vocabulary."""
    folder = tmp_path_factory.mktemp("clip") / "saved"
    oracle_clip("gelu", vocab_size=len(small_tokenizer())).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def refusal(folder: Path, kind: type[MinisdError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load_clip(folder)
    assert "\n" not in str(caught.value)


# Folders that transformers wrote.


@pytest.mark.parametrize("shape", CLIPS)
def test_what_transformers_saved(shape: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    oracle = oracle_clip(shape, vocab_size=len(tokenizer))
    oracle.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    clip, ours = weights_loader.load_clip(tmp_path)
    ids = ours(TEXTS)
    assert torch.equal(ids, tokenizer(TEXTS))
    expected = their_logits(oracle, clip, ids)
    torch.testing.assert_close(our_logits(clip, ids), expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert not clip.training


def test_half_precision(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path / "m")
    edit(folder / WEIGHTS, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    clip, _ = weights_loader.load_clip(folder)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}  # as asked for, whatever the file's
    clip, _ = weights_loader.load_clip(folder, dtype=torch.float16)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float16}


def test_constants_of_old_files(saved: Path, tmp_path: Path) -> None:
    """openai/clip-vit-large-patch14 stores position ids in both encoders, and its sizes twice."""
    folder = copy(saved, tmp_path / "m")
    more = {f"{half}_model.embeddings.position_ids": torch.arange(5)[None] for half in ("text", "vision")}
    edit(folder / WEIGHTS, lambda tensors: tensors | more)
    config = json.loads((folder / "config.json").read_text())
    edit_json(
        folder / "config.json",
        text_config_dict=config["text_config"],
        text_config={"hidden_size": 8},
        vision_config_dict=None,
    )
    clip, tokenizer = weights_loader.load_clip(folder)
    expected, _ = weights_loader.load_clip(saved)
    torch.testing.assert_close(
        our_logits(clip, tokenizer(TEXTS)), our_logits(expected, tokenizer(TEXTS)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("version", [4, 5])
def test_normalisation(saved: Path, tmp_path: Path, version: int) -> None:
    """OpenAI's values, unless the folder has others in the file of either version of transformers."""
    clip, _ = weights_loader.load_clip(saved)
    default = transformers.CLIPImageProcessor()
    assert clip.image_encoder.config.mean == tuple(default.image_mean)
    assert clip.image_encoder.config.std == tuple(default.image_std)
    folder = copy(saved, tmp_path / "m")
    processor = transformers.CLIPImageProcessor(image_mean=[0.5, 0.25, 0.125], image_std=[0.5, 0.75, 1])
    if version == 4:
        processor.save_pretrained(folder)
        assert (folder / "preprocessor_config.json").is_file()
    else:
        transformers.CLIPProcessor(processor, transformers.CLIPTokenizer.from_pretrained(saved)).save_pretrained(folder)
        assert (folder / "processor_config.json").is_file()
    clip, _ = weights_loader.load_clip(folder)
    assert clip.image_encoder.config.mean == (0.5, 0.25, 0.125)
    assert clip.image_encoder.config.std == (0.5, 0.75, 1)


def test_shards(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path / "m")
    (folder / WEIGHTS).unlink()
    transformers.CLIPModel.from_pretrained(saved).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    clip, tokenizer = weights_loader.load_clip(folder)
    expected, _ = weights_loader.load_clip(saved)
    torch.testing.assert_close(
        our_logits(clip, tokenizer(TEXTS)), our_logits(expected, tokenizer(TEXTS)), atol=1e-5, rtol=1e-5
    )


# Folders that we wrote.


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_our_folder_in_transformers(tmp_path: Path, dtype: torch.dtype | None) -> None:
    tokenizer = small_tokenizer()
    clip = small_clip(len(tokenizer))
    assert weights_loader.save_clip(clip, tokenizer, tmp_path / "m", dtype=dtype) == tmp_path / "m"
    theirs, loading = transformers.CLIPModel.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading  # nothing missing, unexpected or of another shape
    ids = transformers.CLIPTokenizer.from_pretrained(tmp_path / "m")(
        TEXTS, padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    assert torch.equal(ids, tokenizer(TEXTS))
    again, _ = weights_loader.load_clip(tmp_path / "m")
    torch.testing.assert_close(our_logits(again, ids), their_logits(theirs.eval(), clip, ids), rtol=0, atol=1e-5)
    if dtype is None:
        torch.testing.assert_close(our_logits(again, ids), our_logits(clip, ids), atol=1e-5, rtol=1e-5)
    stored = safetensors.torch.load_file(tmp_path / "m" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {dtype or torch.float32}
    assert clip.logit_scale.dtype == torch.float32  # of the one that was saved


def test_transformers_prepares_pictures_as_we_do(tmp_path: Path) -> None:
    """preprocessor_config.json: its pixel values are those that our patches are made of."""
    tokenizer = small_tokenizer()
    clip = small_clip(len(tokenizer))
    weights_loader.save_clip(clip, tokenizer, tmp_path / "m")
    picture = to_pil(pixels(clip))[0]
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "m")
    theirs = processor(picture, return_tensors="pt").pixel_values
    ours = from_pil(picture)
    seen: list[Tensor] = []
    clip.image_encoder.patch_embedding.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    clip.embed_images(ours)
    torch.testing.assert_close(seen[0], theirs, rtol=0, atol=1e-5)
    larger = processor(Image.new("RGB", (40, 30)), return_tensors="pt").pixel_values
    assert larger.shape == theirs.shape


def test_saved_and_loaded_is_equal_in_every_bit(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    clip = small_clip(len(tokenizer))
    weights_loader.save_clip(clip, tokenizer, tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, vocabulary = weights_loader.load_clip(tmp_path / "m")
    assert again.text_encoder.config == clip.text_encoder.config
    assert again.image_encoder.config == clip.image_encoder.config
    assert vocabulary.vocab == tokenizer.vocab
    before, after = clip.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    weights_loader.save_clip(again, vocabulary, tmp_path / "n")
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "n").iterdir())
    assert all((tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes() for name in files)


def test_clip_inside_a_model_shares_its_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer()
    clip = small_clip(len(tokenizer))
    model = tmp_path / "model"
    weights_loader.save_clip(clip, None, model / "clip")
    tokenizer.save(model / "tokenizer")
    assert not (model / "clip" / "vocab.json").exists()
    (model / "model_index.json").write_text("{}")
    monkeypatch.setattr("weights_loader.clip.resolve", lambda source: model)
    for source in (model, model / "clip", str(model), "sticker"):
        again, vocabulary = weights_loader.load_clip(source)
        assert vocabulary.vocab == tokenizer.vocab
        torch.testing.assert_close(
            our_logits(again, tokenizer(TEXTS)), our_logits(clip, tokenizer(TEXTS)), atol=1e-5, rtol=1e-5
        )


def test_loading_does_not_import_the_compiler(saved: Path) -> None:
    code = "import sys, weights_loader; weights_loader.load_clip(sys.argv[1]); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, saved], check=False).returncode == 0


# What does not fit.


def test_missing_folders(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal(tmp_path / "nowhere", InputError, r"nowhere is not a folder, expected 'sticker' or a folder")
    refusal(saved / WEIGHTS, InputError, "is not a folder")
    refusal(tmp_path, MismatchError, "has no config.json, so it is not a CLIP")
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr("weights_loader.clip.resolve", lambda source: tmp_path)
    with pytest.raises(MismatchError, match=r"clip has no config\.json"):
        weights_loader.load_clip("sticker")
    with pytest.raises(InputError, match="dtype"):
        weights_loader.load_clip(saved, dtype=torch.int8)
    with pytest.raises(DeviceError, match="cuda:99"):
        weights_loader.load_clip(saved, device="cuda:99")


def test_tensors_that_do_not_fit(saved: Path, tmp_path: Path) -> None:
    """Missing, unexpected and of another shape: all listed at once."""
    folder = copy(saved, tmp_path / "m")

    def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["vision_model.embeddings.class_embedding"], tensors["logit_scale"]
        return {**tensors, "mystery.weight": torch.zeros(1), "visual_projection.weight": torch.zeros(24, 65)}

    edit(folder / WEIGHTS, damage)
    refusal(folder, MismatchError, r"2 missing: logit_scale, vision_model\.embeddings\.class_embedding")
    refusal(folder, MismatchError, r"1 unexpected: mystery\.weight")
    refusal(folder, MismatchError, r"visual_projection\.weight \(24, 65\) \(expected \(24, 64\)\)")


@pytest.mark.parametrize(
    "values", [{"model_type": "clip_text_model"}, {"model_type": "siglip"}, {"vision_config": {"num_channels": 1}}]
)
def test_configs_of_other_networks(saved: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    folder = copy(saved, tmp_path / "m")
    edit_json(folder / "config.json", **values)
    refusal(folder, MismatchError, "expected 'clip'" if "model_type" in values else "num_channels 1, expected 3")


@pytest.mark.parametrize(
    "values",
    [
        {"image_std": [1, 0, 1]},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5, 0.5, math.nan]},
        {"do_normalize": False},
        {"rescale_factor": 1},
        {"resample": 0},
    ],
)
def test_other_ways_to_normalise(saved: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    folder = copy(saved, tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    refusal(folder, MismatchError, f"the preprocessor config has {next(iter(values))}")


def test_incomplete_folders(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path / "m")
    (folder / "vocab.json").unlink()
    refusal(folder, MismatchError, "has no vocab.json")
    shutil.copy(saved / "vocab.json", folder)
    (folder / WEIGHTS).unlink()
    refusal(folder, MismatchError, "has no weights")


def test_a_vocabulary_of_another_model(tmp_path: Path) -> None:
    oracle_clip("gelu", vocab_size=300).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    refusal(tmp_path, MismatchError, "at most the 300 of the text encoder")


def test_saving_refuses_to_overwrite(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    clip = small_clip(len(tokenizer))
    folder = weights_loader.save_clip(clip, tokenizer, tmp_path / "m")
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        weights_loader.save_clip(clip, tokenizer, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    weights_loader.save_clip(clip, tokenizer, folder, dtype=torch.float16, overwrite=True)
    assert len((folder / WEIGHTS).read_bytes()) < len(before)
    with pytest.raises(OutputError, match="is a file"):
        weights_loader.save_clip(clip, tokenizer, folder / WEIGHTS)
    with pytest.raises(InputError, match="dtype"):
        weights_loader.save_clip(clip, tokenizer, tmp_path / "x", dtype=torch.int8)
