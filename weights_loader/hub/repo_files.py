"""Which files of a repository in diffusers layout make one Stable Diffusion model."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from minisd.errors import FileFormatError, MismatchError
from weights_loader.paths import safe_join

MODEL_INDEX = "model_index.json"
PIXEL_PIPELINE = "DDPMPipeline"  # of the courses: a UNet and a scheduler
NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
SMALL_PARTS = {
    "tokenizer": ("vocab.json", "merges.txt"),  # these two are needed, the rest is taken where present
    "tokenizer_2": ("vocab.json", "merges.txt"),
    "scheduler": ("scheduler_config.json",),
    "low_res_scheduler": ("scheduler_config.json",),
}
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# model.fp16.safetensors | diffusion_pytorch_model.safetensors.index.fp16.json; matched in full, so that
# openvino_model.bin, flax_model.msgpack and the single .ckpt files are none
_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
_WEIGHTS = re.compile(rf"{_STEM}(?:\.(?P<variant>\w+))?\.(?P<format>safetensors|bin)")
_INDEX = re.compile(rf"{_STEM}\.(?P<format>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")


def weight_files(names: Collection[str]) -> dict[tuple[str | None, str], str]:
    """The weight files among the names of one folder: {(variant, format): file name}.

    `variant` is "fp16", "non_ema" ... or None for the plain file; `format` is "safetensors" or "bin". Weights
    in several files are represented by their index (see `shards`).
    """
    found: dict[tuple[str | None, str], str] = {}
    for pattern in (_INDEX, _WEIGHTS):  # where both are there, the single file wins
        for name in sorted(names):
            if match := pattern.fullmatch(name):
                found[match["variant"], match["format"]] = name
    return found


def choose_weights(names: Collection[str], variant: str | None = None) -> str | None:
    """The weight file (or index) to load among the names of one folder, None if there is none.

    The variant where it is there, else the plain one; safetensors before .bin.
    """
    found = weight_files(names)
    wanted = [(v, f) for v in dict.fromkeys((variant, None)) for f in ("safetensors", "bin")]
    return next((found[key] for key in wanted if key in found), None)


def variants(names: Collection[str]) -> list[str]:
    """The weight variants that a repository has for at least one network."""
    return sorted({v for part in NETWORKS for v, _ in weight_files(_inside(part, names)) if v is not None})


def needed_files(names: Collection[str], model_index: Mapping[str, object], variant: str | None) -> tuple[list, list]:
    """What to read out of a repository that has these names: (files to have, files needed but not there).

    Shards are not among them: their index is. Never the safety checker, nor files for other frameworks.
    Raises MismatchError if the model index is not one of a Stable Diffusion model.
    """
    parts = {name for name, value in model_index.items() if isinstance(value, list) and value and value[0] is not None}
    if not {"unet", "vae"} <= parts and model_index.get("_class_name") != PIXEL_PIPELINE:
        raise MismatchError(
            f"{MODEL_INDEX} describes a {str(model_index.get('_class_name'))[:60]!r} without unet and vae, "
            "but minisd reads Stable Diffusion; choose such a model, for example 'sd15'."
        )
    files, missing = [MODEL_INDEX], []
    for part in (p for p in SMALL_PARTS if p in parts):
        there = _inside(part, names)
        files += [f"{part}/{name}" for name in (*SMALL_PARTS[part], *_TOKENIZER_EXTRAS) if name in there]
        missing += [f"{part}/{name}" for name in SMALL_PARTS[part] if name not in there]
    for part in (p for p in NETWORKS if p in parts):
        there = _inside(part, names)
        weights = choose_weights(there, variant)
        default = ("model" if part.startswith("text_encoder") else "diffusion_pytorch_model") + ".safetensors"
        for name in ("config.json", weights or default):
            (files if name in there else missing).append(f"{part}/{name}")
    return files, missing


def shards(folder: Path, index: str) -> list[str]:
    """The weight files that an index file names, relative to `folder` as `index` is.

    Raises FileFormatError: not an index; UnsafeFileError: it names a file outside of its folder.
    """
    part = safe_join(folder, index).parent
    weight_map = read_json(part / Path(index).name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()) or not weight_map:
        raise FileFormatError(
            f"Index {folder / index} has no 'weight_map' from tensor names to file names; download it again."
        )
    names = dict.fromkeys(weight_map.values())
    return [safe_join(part, name).relative_to(folder).as_posix() for name in names]


def read_json(path: Path) -> dict:
    """The JSON object in a small file. Raises FileFormatError if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} should hold JSON but cannot be read as such; download it again.") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} should hold a JSON object, got a {type(content).__name__}; download it again.")
    return content


def _inside(part: str, names: Collection[str]) -> set[str]:
    return {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
