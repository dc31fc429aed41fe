"""Damaged weight files through the public functions: refused in one sentence, or read, never a crash or a hang."""

import contextlib
import copy
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from support import lora_files
from support.batches import outcomes
from support.mutations import mutated
from support.small import randomise, small_tokenizer
from torch import Tensor

import weights_loader
from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MinisdError, NumericalError, OutOfMemory
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.schedulers import PNDM

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")
LONGEST = 500  # characters of a message, the folder's name apart
# What only a checksum of the whole file could tell from a good file: another number of the header, a pickle that was
# written again with its own checksum, the name of a word.
ANOTHER_FILE = tuple(
    f"other after {kind}" for kind in ("bits of the pickle", "bits of the header", "dtype", "name", "metadata")
)
Result = dict[str, Any]


class Target(NamedTuple):
    """A good file, and what is made of it."""

    path: Path
    use: Callable[[Path], Result]


def tiny_pipeline() -> StableDiffusion:
    """Of sizes that are told from the shapes of a single file: 8 heads, groups of 32."""
    tokenizer = small_tokenizer()
    text = CLIPTextConfig(vocab_size=len(tokenizer), width=64, layers=2, heads=1, mlp_width=8)
    unet = UNetConfig(
        channels=(32, 32),
        depths=(1, 0),
        heads=(8, 8),
        layers_per_block=1,
        context_width=64,
        sample_size=8,
        only_cross_attention=(False, False),
    )
    parts = (CLIPTextTransformer(text), VAE(VAEConfig(channels=(32, 32), layers_per_block=1)), UNet(unet))
    text_encoder, vae, network = (randomise(part, i) for i, part in enumerate(parts))
    return StableDiffusion(tokenizer, text_encoder, vae, network, PNDM(), Defaults(num_inference_steps=2))


def contents(sd: StableDiffusion) -> Result:
    parts = {name: getattr(sd, name) for name in ("text_encoder", "vae", "unet")}
    found = {f"{part}.{name}": each for part, net in parts.items() for name, each in net.state_dict().items()}
    return {
        **found,
        **{f"{part} config": net.config for part, net in parts.items()},
        "scheduler": sd.scheduler,
        "defaults": sd.defaults,
    }


def equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and torch.equal(a, b) if isinstance(b, Tensor) else a == b


def targets(folder: Path) -> dict[str, Target]:
    sd = tiny_pipeline()
    plain = contents(sd)

    def load_file(path: Path) -> Result:
        return drawn(weights_loader.load(path, tokenizer=sd.tokenizer))

    def load_folder(path: Path) -> Result:
        return drawn(weights_loader.load(path.parent.parent))

    def drawn(model: StableDiffusion) -> Result:
        """Its contents; every weight is read. With huge weights or NaN it draws something finite, or says so."""
        found = contents(model)
        weights = [each for each in found.values() if isinstance(each, Tensor)]
        if not all(each.abs().max() < 1e3 for each in weights):  # also not for NaN
            with contextlib.suppress(NumericalError):
                picture = model("a cat", num_inference_steps=1, seed=0, height=16, width=16, output_type="pt").images
                assert picture.isfinite().all()
        return found

    def load_lora(path: Path) -> Result:
        try:
            lora = weights_loader.load_lora(sd, path)
            found = contents(sd)
            lora.remove()
            return found
        finally:
            assert all(equal(each, plain[name]) for name, each in contents(sd).items()), "the model was changed"

    def load_embedding(path: Path) -> Result:
        model = copy.copy(sd)
        model.text_encoder, model.tokenizer = copy.deepcopy((sd.text_encoder, sd.tokenizer))
        try:
            words = weights_loader.load_embedding(model, path)
        except MinisdError:
            assert torch.equal(model.text_encoder.token_embedding.weight, sd.text_encoder.token_embedding.weight)
            assert model.tokenizer.added == sd.tokenizer.added
            raise
        return {"words": words, "table": model.text_encoder.token_embedding.weight.detach()}

    found = {}
    first = weights_loader.save(sd, folder / "own.safetensors", layout="ldm")
    found["file"] = Target(first, load_file)
    tensors = safetensors.torch.load_file(first)
    safetensors.torch.save_file(tensors, folder / "official.safetensors", {"format": "pt"})
    found["file without configs"] = Target(folder / "official.safetensors", load_file)
    state = {"state_dict": tensors, "global_step": 7, "epoch": 1}
    torch.save(state, folder / "zip.ckpt")
    torch.save(state, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    found |= {name: Target(folder / name, load_file) for name in ("zip.ckpt", "old.ckpt")}
    model = weights_loader.save(sd, folder / "model")
    unet = model / "unet" / "diffusion_pytorch_model.safetensors"
    found["folder, unet"] = Target(unet, load_folder)
    found["folder, text encoder"] = Target(model / "text_encoder" / "model.safetensors", load_folder)
    vae = model / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(vae), vae.with_suffix(".bin"))
    vae.unlink()
    found["folder, vae.bin"] = Target(vae.with_suffix(".bin"), load_folder)
    down, up = torch.randn(2, 32) / 9, torch.randn(32, 2)
    kohya, word = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_", torch.randn(2, 64)
    lora = {
        f"{kohya}{q}.lora_{way}.weight": each
        for q in "qv"
        for way, each in (("down", down.clone()), ("up", up.clone()))
    }
    lora_files.save(lora | {f"{kohya}q.alpha": torch.tensor(1.0)}, folder / "lora.safetensors", {"ss_tag": "x"})
    torch.save(lora, folder / "lora.pt")
    found |= {name: Target(folder / name, load_lora) for name in ("lora.safetensors", "lora.pt")}
    safetensors.torch.save_file({"<a>": word, "<b>": word + 1}, folder / "words.safetensors")
    torch.save({"<cat>": word[0]}, folder / "learned_embeds.bin")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": word}}, folder / "a1111.pt")
    embeddings = ("words.safetensors", "learned_embeds.bin", "a1111.pt")
    found |= {name: Target(folder / name, load_embedding) for name in embeddings}
    return found


def inspected(path: Path) -> Result:
    return {"text": str(weights_loader.inspect(path))}


def tried(target: Target, use: Callable[[Path], Result], good: bytes, expected: Result, chance: random.Random) -> str:
    """What became of one damaged file, in a few words that begin with "wrong" if it may not be."""
    kind, in_data, raw = mutated(good, chance)
    target.path.unlink()  # not in place: the model before may be mapped
    target.path.write_bytes(raw)
    try:
        found = use(target.path)
    except MinisdError as error:
        message = str(error).replace(str(target.path.parent), "")
        bad = "\n" in message or len(message) > LONGEST or not message.endswith((".", ").", "!"))
        if bad or "weights_only" in message or isinstance(error, OutOfMemory):
            return f"wrong message after {kind}: {type(error).__name__}: {message}"
        return f"refused as {type(error).__name__}"
    finally:
        target.path.unlink()
        target.path.write_bytes(good)
    different = [name for name in expected if not equal(found.get(name), expected[name])]
    if not different and found.keys() == expected.keys():
        return "read as before"
    if use is inspected:
        return "another description"
    if in_data or raw == good:
        return "other numbers" if all(isinstance(found[name], Tensor) for name in different) else f"wrong: {kind}"
    return f"other after {kind}: {', '.join(different)[:200]}"


def fuzz(folder: Path, count: int, first: int = 0) -> Counter[str]:
    """Try `count` damaged files; how many had each outcome. Fails with the list of wrong ones."""
    files = targets(folder)
    names, good = sorted(files), {name: target.path.read_bytes() for name, target in files.items()}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    expected = {name: target.use(target.path) for name, target in files.items()}
    described = {name: inspected(target.path) for name, target in files.items()}

    def case(number: int) -> str:
        chance = random.Random(f"weights {number}")
        name = names[number % len(names)]
        if chance.random() < 0.2:
            return f"inspect: {tried(files[name], inspected, good[name], described[name], chance)}"
        return f"{name}: {tried(files[name], files[name].use, good[name], expected[name], chance)}"

    counts: Counter[str] = Counter()
    wrong = []
    for number, text in outcomes(count, case, first):
        what = text.partition(": ")[2]
        counts[text if os.environ.get("MINISD_FUZZ_ALL") else what.partition(" as ")[0].partition(" after ")[0]] += 1
        if not what.startswith(("refused", "read", "other numbers", "another", *ANOTHER_FILE)):
            wrong.append(f"{number} {text}")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    return counts


@pytest.mark.parametrize("count", [50, pytest.param(600, marks=pytest.mark.slow)])
def test_mutated_weights(tmp_path: Path, count: int) -> None:
    counts = fuzz(tmp_path, count)
    assert counts["refused"] > 0.5 * count
    assert counts["read"] > 0
    assert counts["other numbers"] > 0
