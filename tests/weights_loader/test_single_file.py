"""Single files in the original layout: as we write them, and as they are published."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.saved_models import (
    Saved,
    as_published,
    assert_same_picture,
    same_weights,
    save_oracle,
    single,
)
from support.small import small_tokenizer

import weights_loader
from minisd.errors import (
    FileFormatError,
    InputError,
    MismatchError,
)
from minisd.schedulers import DDIM, PNDM
from weights_loader.single_file import CONFIGS_KEY

diffusers = pytest.importorskip("diffusers")


def test_single_file(saved: Saved, tmp_path: Path) -> None:
    """From its metadata, with the vocabulary beside it."""
    sd = weights_loader.load(single(saved, tmp_path / "m.safetensors"))
    assert same_weights(sd, weights_loader.load(saved.folder))
    assert_same_picture(sd, saved.oracle)


def test_single_file_as_published(saved: Saved, tmp_path: Path) -> None:
    """A pickled checkpoint with training state, schedule buffers and leftovers: everything from shapes."""
    tensors = as_published(single(saved, tmp_path / "m.safetensors"))
    torch.save({"state_dict": tensors, "global_step": 470000, "epoch": 3}, tmp_path / "m.ckpt")
    given = saved.oracle.scheduler.config.prediction_type
    with pytest.warns(UserWarning, match="'global_step', 'epoch'"):
        sd = weights_loader.load(tmp_path / "m.ckpt", prediction_type=given)
    assert sd.text_encoder.config == weights_loader.load(saved.folder).text_encoder.config
    assert_same_picture(sd, saved.oracle)


def test_averages_are_reported_and_not_loaded(sd1: Saved, tmp_path: Path) -> None:
    """F27: the plain weights are loaded; the warning has the number of averages."""
    path = single(sd1, tmp_path / "m.safetensors")
    count = len(weights_loader.load(sd1.folder).unet.state_dict())
    safetensors.torch.save_file(as_published(path, averages=True), tmp_path / "ema.safetensors")
    with pytest.warns(UserWarning, match=rf"{count} averaged \(EMA\)") as caught:
        sd = weights_loader.load(tmp_path / "ema.safetensors")
    assert caught[0].filename == __file__  # the line that calls load
    assert_same_picture(sd, sd1.oracle)


@pytest.mark.parametrize("wrap", ["bare", "module.", "_orig_mod."])
def test_wrapped_and_bare_checkpoints(sd1: Saved, tmp_path: Path, wrap: str) -> None:
    """F28: without `state_dict`, and with the prefixes of other people's wrappers."""
    tensors = as_published(single(sd1, tmp_path / "m.safetensors"))
    prefix = "" if wrap == "bare" else wrap
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "m.ckpt")
    if prefix:
        with pytest.warns(UserWarning, match=f"'{prefix}' was removed"):
            sd = weights_loader.load(tmp_path / "m.ckpt")
    else:
        sd = weights_loader.load(tmp_path / "m.ckpt")
    assert_same_picture(sd, sd1.oracle)


def test_old_single_file_without_text_model(sd1: Saved, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(single(sd1, tmp_path / "m.safetensors"))
    old = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    assert_same_picture(weights_loader.load(tmp_path / "old.safetensors"), sd1.oracle)


def test_single_file_of_sd2_needs_a_prediction_type(tmp_path: Path) -> None:
    """From a known file name, or the argument; the tensors do not show it."""
    saved = save_oracle(tmp_path, sd2=True, context=1024)
    tensors = as_published(single(saved, tmp_path / "mine.safetensors"))
    for name in ("mine", "v2-1_768-ema-pruned", "512-base-ema"):
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"mine\.safetensors.*prediction_type='v_prediction'.*'epsilon'"):
        weights_loader.load(tmp_path / "mine.safetensors")
    for name, given, expected, sampler in (
        ("mine", "v_prediction", "v_prediction", DDIM),
        ("mine", "epsilon", "epsilon", PNDM),
        ("v2-1_768-ema-pruned", None, "v_prediction", DDIM),
        ("512-base-ema", None, "epsilon", PNDM),
        ("512-base-ema", "v_prediction", "v_prediction", DDIM),
    ):
        sd = weights_loader.load(tmp_path / f"{name}.safetensors", prediction_type=given)
        assert (sd.scheduler.schedule.prediction_type, type(sd.scheduler)) == (expected, sampler)
        assert sd.tokenizer.pad_id == 0
    assert_same_picture(weights_loader.load(tmp_path / "v2-1_768-ema-pruned.safetensors"), saved.oracle)


def test_single_file_without_a_vocabulary(sd1: Saved, tmp_path: Path) -> None:
    """The hub is offline in tests: the error names the ways to give a vocabulary, and each of them works."""
    path = single(sd1, tmp_path / "m.safetensors")
    vocabulary = shutil.move(tmp_path / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(MismatchError, match=r"vocab\.json and merges\.txt.*tokenizer="):
        weights_loader.load(path, offline=True)
    right = weights_loader.load(sd1.folder)
    for given in (vocabulary, str(vocabulary), small_tokenizer()):
        assert same_weights(weights_loader.load(path, tokenizer=given), right)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(Path(vocabulary) / name, tmp_path)
    assert same_weights(weights_loader.load(path), right)


def test_damaged_metadata_is_named(sd1: Saved, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(single(sd1, tmp_path / "m.safetensors"))
    for text in ("{", "[]", '{"unet": 3}'):
        safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {CONFIGS_KEY: text})
        with pytest.raises((FileFormatError, MismatchError), match=r"m\.safetensors|metadata"):
            weights_loader.load(tmp_path / "m.safetensors")
