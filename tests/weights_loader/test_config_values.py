"""Every JSON file of a model with values of other kinds and ranges: refused in one sentence, or the same networks."""

import copy
import itertools
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import small_pipeline
from torch import Tensor

import weights_loader
from minisd.configs import CLIPImageConfig, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import InputError, MinisdError, MismatchError, UnsafeFileError
from minisd.models import CLIP
from minisd.pipeline import Defaults
from minisd.schedulers import DDIM, LCM, PNDM, NoiseSchedule

GENERATOR = torch.Generator().manual_seed(0)
LONGEST = 500  # characters of a message, the folder's name apart
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 64, 200, 10**9, 10**400),
    *(2.5, 8.0, 1e-40, 1e9, float("inf"), float("nan")),
    *("", "x", "8", "x" * 5000, [], [8], [None, "x"], ["x"] * 5000, {}, {"content": 5}),
)
# Values of the allowed kind and range are another model, which no other file of the folder contradicts.
OTHER_MODEL = {
    "model_index.json": set(),
    "minisd.json": {"num_inference_steps", "guidance_scale", "words", "zero_empty_prompt"},
    "scheduler/scheduler_config.json": {
        *("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas", "prediction_type"),
        *("rescale_betas_zero_snr", "timestep_spacing", "steps_offset", "skip_prk_steps", "set_alpha_to_one"),
        "whole_first_step",
        "_class_name",
    },
    "unet/config.json": {"attention_head_dim", "norm_num_groups", "sample_size", "only_cross_attention"},
    "vae/config.json": {"norm_num_groups", "scaling_factor", "sample_size", "force_upcast"},
    "text_encoder/config.json": {"num_attention_heads", "layer_norm_eps"},
    "tokenizer/tokenizer_config.json": {"model_max_length"},
    "tokenizer/special_tokens_map.json": {"pad_token"},
    "clip/config.json": {"num_attention_heads", "layer_norm_eps"},
    "clip/preprocessor_config.json": {"image_mean", "image_std"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sd = small_pipeline()
    path = weights_loader.save(sd, tmp_path_factory.mktemp("model") / "m")
    text = replace(sd.text_encoder.config, projection_width=24)
    image = CLIPImageConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2, mlp_width=48, projection_width=24)
    clip = CLIP(text, image).eval()
    for encoder in (clip.text_encoder, clip.image_encoder):
        for name, parameter in encoder.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 * ("norm" in name and name.endswith("weight")), 0.2, GENERATOR)
    weights_loader.save_clip(clip, None, path / "clip")
    return path


def changes(folder: Path) -> Iterator[tuple[str, list[str], Any]]:
    """Each key of each JSON file, also of the objects in it, with each value: (file, keys, value)."""
    for file in OTHER_MODEL:
        stored = json.loads((folder / file).read_text())
        keys = [[key] for key in stored]
        keys += [[key, inner] for key, value in stored.items() if isinstance(value, dict) for inner in value]
        yield from ((file, *each) for each in itertools.product(keys, VALUES))


@torch.no_grad()
def results(folder: Path) -> dict[str, Any]:
    """What the model makes of one input, part by part."""
    sd = weights_loader.load(folder)
    clip, tokenizer = weights_loader.load_clip(folder)
    ids, x = sd.tokenizer("a cat"), torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8)
    side = clip.image_encoder.config.image_size
    text = sd.text_encoder(ids)
    return {
        "ids": ids,
        "text": text,
        "unet": sd.unet(x, torch.tensor(500.0), text),
        "pixels": sd.decode(x),
        "encoded": sd.vae.encode(torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16)).mean,
        "clip": clip(torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side), tokenizer("a cat")),
        "scheduler": sd.scheduler,
        "defaults": sd.defaults,
        "size": sd.unet.config.cells,
        "vae size": (sd.vae.config.sample_size, sd.vae.config.force_upcast),
    }


def equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b)) if isinstance(a, Tensor) else a == b


def check(folder: Path, cases: list[tuple[str, list[str], Any]]) -> dict[str, int]:
    """Try each change; the numbers of refused, harmless and other models. Fails with the list of wrong cases."""
    warnings.simplefilter("ignore")
    before, counts, wrong = results(folder), {"refused": 0, "harmless": 0, "other model": 0}, []
    for file, keys, value in cases:
        path, what = folder / file, f"{file} {'.'.join(keys)} = {str(value)[:30]!r}"
        text = path.read_text()
        stored = json.loads(text)
        target = stored[keys[0]] if len(keys) == 2 else stored
        target[keys[-1]] = copy.deepcopy(value)
        path.write_text(json.dumps(stored))
        try:
            after = results(folder)
            different = [part for part in before if not equal(before[part], after[part])]
            if different and keys[-1] in OTHER_MODEL[file]:
                counts["other model"] += 1
            elif different:
                wrong.append(f"{what}: another {', '.join(different)}")
            else:
                counts["harmless"] += 1
        except MinisdError as error:
            counts["refused"] += 1
            message = str(error).replace(str(folder), "")
            if len(message) > LONGEST or "\n" in message or not message.endswith((".", ").")):
                wrong.append(f"{what}: {len(message)} characters, {message[:200]}")
        except Exception as error:
            wrong.append(f"{what}: raw {type(error).__name__}: {str(error)[:200]}")
        finally:
            path.write_text(text)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    return counts


def test_some_values(folder: Path) -> None:
    cases = list(changes(folder))
    counts = check(folder, random.Random(1).sample(cases, 30))
    assert counts["refused"] > 6
    assert counts["harmless"] > 6


@pytest.mark.slow
def test_every_value(folder: Path) -> None:
    cases = list(changes(folder))
    assert len(cases) > 2000
    print(check(folder, random.Random(2).sample(cases, 2000)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (UNetConfig, {"norm_groups": 7}),
        (UNetConfig, {"heads": (8, 8)}),
        (UNetConfig, {"heads": (8, 8, 8, 3)}),
        (UNetConfig, {"sample_size": (8, 8, 8)}),
        (UNetConfig, {"layers_per_block": 10**9}),
        (UNetConfig, {"channels": (33,) * 4, "norm_groups": 1}),
        (VAEConfig, {"scaling_factor": -1.0}),
        (VAEConfig, {"scaling_factor": float("nan")}),
        (VAEConfig, {"latents_mean": (0.0,) * 4}),
        (VAEConfig, {"channels": ()}),
        (CLIPTextConfig, {"heads": 7}),
        (CLIPTextConfig, {"layers": True}),
        (CLIPTextConfig, {"norm_eps": 1e9}),
        (CLIPTextConfig, {"end_id": 49408}),
        (CLIPImageConfig, {"patch_size": 225}),
        (CLIPImageConfig, {"std": (1.0, 0.0, 1.0)}),
        (Defaults, {"guidance_scale": 10**400}),
        (Defaults, {"words": 5}),
        (DDIM, {"clip_sample_range": 0}),
        (DDIM, {"steps_offset": 1000}),
        (PNDM, {"skip_prk_steps": 1}),
        (LCM, {"original_inference_steps": 2000}),
        (NoiseSchedule, {"num_train_timesteps": 10**9}),
        (NoiseSchedule, {"beta_start": 10**400}),
    ],
)
def test_configs_made_by_hand(kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(values))}|beta") as caught:
        kind(**values)
    assert len(str(caught.value)) < LONGEST


def test_the_end_token_is_that_of_the_tokenizer(folder: Path) -> None:
    for part in ("text_encoder", "clip"):
        path = folder / part / "config.json"
        text = path.read_text()
        stored = json.loads(text)
        stored.get("text_config", stored)["eos_token_id"] = 64
        path.write_text(json.dumps(stored))
        with pytest.raises(MismatchError, match="eos_token_id 64, expected the 539 of the tokenizer"):
            results(folder)
        path.write_text(text)


def test_prompts_longer_than_the_text_encoder_reads(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "model_max_length": 78}))
    with pytest.raises(MismatchError, match="model_max_length 78, expected at most the 77"):
        weights_loader.load(folder)
    path.write_text(text)


def test_files_lead_nowhere_else(folder: Path, tmp_path: Path) -> None:
    for name in ("minisd.json", "model_index.json", "scheduler/scheduler_config.json"):
        moved = (folder / name).rename(tmp_path / "outside")
        (folder / name).symlink_to(moved)
        with pytest.raises(UnsafeFileError, match="is a link that leads out of its folder"):
            weights_loader.load(folder)
        (folder / name).unlink()
        moved.rename(folder / name)
