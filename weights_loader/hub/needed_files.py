"""Which files of a repository in diffusers layout make one model.

A pixel model may be flat: the files of its UNet and of its scheduler are at the top of the repository.
"""

from collections.abc import Collection, Mapping

from minisd.errors import MismatchError
from weights_loader.model_folder import LOW_RES_SCHEDULER, MODEL_INDEX, SCHEDULER_CONFIG, choose_weights, weight_files
from weights_loader.pixel_configs import PIXEL_PIPELINE

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
FOLDERS = ("", *(f"{part}/" for part in NETWORKS))  # of weights
OTHER_PARTS = {  # part: the files that it must have
    "tokenizer": ("vocab.json", "merges.txt"),
    "tokenizer_2": ("vocab.json", "merges.txt"),
    "scheduler": (SCHEDULER_CONFIG,),
    LOW_RES_SCHEDULER: (SCHEDULER_CONFIG,),
}
OPTIONAL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def variants(names: Collection[str]) -> list[str]:
    """The weight variants that a repository has for at least one network."""
    return sorted({v for folder in FOLDERS for v, _ in weight_files(_inside(folder, names)) if v is not None})


def needed_files(
    names: Collection[str], model_index: Mapping[str, object], variant: str | None
) -> tuple[list[str], list[str]]:
    """The files to read from a repository with these file names: (available ones, missing ones).

    A sharded weight file is represented by its index. The safety checker and the files of other frameworks are not
    needed. Raises MismatchError if the model index is not that of a Stable Diffusion model.
    """
    parts = {name for name, value in model_index.items() if isinstance(value, list) and value and value[0] is not None}
    of_pixels = model_index.get("_class_name") == PIXEL_PIPELINE
    if not {"unet", "vae"} <= parts and not of_pixels:
        raise MismatchError(
            f"{MODEL_INDEX} describes a {str(model_index.get('_class_name'))[:60]!r} without unet and vae, "
            "expected a Stable Diffusion model; choose for example 'sd15'."
        )
    is_flat = of_pixels and not _inside("unet/", names)
    folders = {part: "" if is_flat else f"{part}/" for part in parts}
    files, missing = [MODEL_INDEX], []
    for part in (p for p in OTHER_PARTS if p in parts):
        folder, available = folders[part], _inside(folders[part], names)
        files += [f"{folder}{name}" for name in (*OTHER_PARTS[part], *OPTIONAL_FILES) if name in available]
        missing += [f"{folder}{name}" for name in OTHER_PARTS[part] if name not in available]
    for part in (p for p in NETWORKS if p in parts):
        folder, available = folders[part], _inside(folders[part], names)
        usual = ("model" if part.startswith("text_encoder") else "diffusion_pytorch_model") + ".safetensors"
        for name in ("config.json", choose_weights(available, variant) or usual):
            (files if name in available else missing).append(f"{folder}{name}")
    return files, missing


def _inside(folder: str, names: Collection[str]) -> set[str]:
    """The names in a folder "unet/", or in "", the whole repository."""
    return {name.removeprefix(folder) for name in names if name.startswith(folder)}
