"""Load and save CLIP in the layout of transformers' CLIPModel.

The folder holds config.json, model.safetensors and preprocessor_config.json. The vocabulary is in the same folder or,
in models that minisd wrote, in the folder `tokenizer` beside it.
"""

import os
import re
import warnings
from pathlib import Path

import torch

from minisd._internal import memory
from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import FileSet, replace_files
from minisd._internal.messages import shown
from minisd._internal.model_files import is_file, list_folder
from minisd.errors import InputError, MismatchError
from minisd.models import CLIP
from minisd.tokenizer import Tokenizer
from weights_loader.build import build, is_position_ids
from weights_loader.clip_configs import clip_configs, clip_json, preprocessor_json, with_normalisation
from weights_loader.devices import check_device, check_dtype, converted
from weights_loader.formats.safetensors import save_safetensors
from weights_loader.model_folder import MODEL_INDEX, ModelFolder
from weights_loader.names import write
from weights_loader.names.clip import tensor_sources
from weights_loader.saving import CLIP_NAMES
from weights_loader.sources import EMBEDDED, resolve
from weights_loader.vocabulary import check_vocabulary

CLIP_FOLDER = "clip"  # inside a model, beside unet/, vae/ and text_encoder/
CLIP_FILES = FileSet("config.json", re.compile(CLIP_NAMES))
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # transformers 4, transformers 5


@memory.translated("loading CLIP")
def load_clip(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[CLIP, Tokenizer]:
    """CLIP, with its text and image encoders, and its tokenizer.

    source: "sticker"; a model folder with a folder `clip`; a folder in the layout of transformers' CLIPModel, such as
    openai/clip-vit-large-patch14. Raises the classes of minisd.errors; a CLIP is loaded completely or not at all.
    """
    check_dtype(dtype)
    device = check_device(device)
    path = resolve(source) if source == EMBEDDED else Path(os.path.expanduser(source))
    if not os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        raise InputError(
            f"{source} is not a folder, expected 'sticker' or a folder in the layout of transformers' CLIPModel; "
            "`hf download openai/clip-vit-large-patch14` downloads one and prints its path."
        )
    folder = ModelFolder(path / CLIP_FOLDER if is_file(path / MODEL_INDEX) else path)
    if "config.json" not in list_folder(folder.path):
        raise MismatchError(
            f"{folder.path} has no config.json, so it is not a CLIP; give a folder that transformers' CLIPModel or "
            "weights_loader.save_clip wrote."
        )
    text, image = clip_configs(folder.json(""))
    image = with_normalisation(image, _preprocessor(folder))
    tokenizer = Tokenizer.from_folder(_vocabulary(folder.path))
    check_vocabulary(tokenizer, text)
    if len(tokenizer) > text.vocab_size:
        raise MismatchError(
            f"{folder.path}: the tokenizer has {len(tokenizer)} ids, expected at most the {text.vocab_size} of the "
            "text encoder; take both from one model."
        )
    clip = build(
        lambda: CLIP(text, image),
        lambda parameters: tensor_sources(text, image, parameters),
        folder.weights(""),
        f"{folder.path}",
        device,
        dtype,
        ignorable=is_position_ids,
    )
    for notice in folder.notices:
        warnings.warn(notice, stacklevel=2)
    return clip, tokenizer


@memory.translated("saving CLIP")
def save_clip(
    clip: CLIP,
    tokenizer: Tokenizer | None,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder in the layout of transformers' CLIPModel. Raises InputError, OutputError, NumericalError.

    tokenizer: None if its vocabulary is in a folder `tokenizer` beside the target already.
    dtype: convert the weights, for instance to torch.float16; None keeps their dtype.
    overwrite: replace a CLIP, all of its files or none; other files in its folder are kept.
    """
    if dtype is not None:
        check_dtype(dtype)
    text, image = clip.text_encoder.config, clip.image_encoder.config
    state = clip.state_dict()
    stored = write(tensor_sources(text, image, state), state)
    tensors = converted(stored, dtype)

    def write_files(folder: Path) -> None:
        save_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(folder)
        write_json(preprocessor_json(image), folder / PREPROCESSOR)
        write_json(clip_json(text, image), folder / "config.json")

    replace_files(target, write_files, CLIP_FILES, overwrite)
    return Path(target)


def _preprocessor(folder: ModelFolder) -> dict:
    """The settings of CLIPImageProcessor, from the file of either version of transformers; {} if there is neither."""
    names = list_folder(folder.path)
    if PREPROCESSOR in names:
        return folder.json("", PREPROCESSOR)
    settings = folder.json("", PROCESSOR).get("image_processor", {}) if PROCESSOR in names else {}
    if not isinstance(settings, dict):
        raise MismatchError(f"{folder.path / PROCESSOR} has image_processor {shown(settings)}, expected an object.")
    return settings


def _vocabulary(folder: Path) -> Path:
    """The folder with the vocabulary."""
    for path in (folder, folder.parent / "tokenizer"):
        if any(is_file(path / name) for name in ("vocab.json", "tokenizer.json")):
            return path
    raise MismatchError(
        f"{folder} has no vocab.json and merges.txt, and no folder `tokenizer` beside it; add them to either."
    )
