"""A folder of a model, opened for reading: its JSON files, and the weights of each of its networks.

The folder's own configs and indices name further files. Each name is checked, so that no file outside the folder is
read.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisd._internal.json_files import read_json
from minisd._internal.messages import shown
from minisd._internal.model_files import is_file, list_folder, safe_join
from minisd.errors import FileFormatError, InputError, MismatchError

if TYPE_CHECKING:
    from weights_loader.build import Tensors
    from weights_loader.formats.weight_file import WeightFile

MODEL_INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler_config.json"
LOW_RES_SCHEDULER = "low_res_scheduler"  # a part of upscalers; only its noise schedule is used
PREVIEW_FOLDER = "preview"  # the decoder of `sd.preview`, in folders that minisd wrote; diffusers ignores it
DEFAULTS_FILE = "minisd.json"  # the recommended settings of the model, in folders that minisd wrote

# The official pipeline of each task
PIPELINES = {
    "text": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscaling": "StableDiffusionUpscalePipeline",
}
XL_PIPELINES = {"text": "StableDiffusionXLPipeline", "inpainting": "StableDiffusionXLInpaintPipeline"}
REFINER_PIPELINE = "StableDiffusionXLImg2ImgPipeline"
READABLE_PIPELINES = {
    *PIPELINES.values(),
    *XL_PIPELINES.values(),
    REFINER_PIPELINE,
    "StableDiffusionImg2ImgPipeline",
}

# model.fp16.safetensors | diffusion_pytorch_model.safetensors.index.fp16.json; matched in full, which excludes
# openvino_model.bin, flax_model.msgpack and single .ckpt files
_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
_WEIGHT_FILE = re.compile(rf"{_STEM}(?:\.(?P<variant>\w+))?\.(?P<format>safetensors|bin)")
_SHARD_INDEX = re.compile(rf"{_STEM}\.(?P<format>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Begin the message of a MismatchError about the contents of a file with its path."""
    try:
        yield
    except MismatchError as error:
        raise MismatchError(f"{path}: {error}") from None


class ModelFolder:
    """A model in diffusers layout: a folder with a folder for each part, such as "unet" or "text_encoder".

    A part named "" is the folder itself, for networks that are stored alone.
    variant: which of several weight files to read, such as "fp16".
    notices: one sentence for each fact about the opened weight files that users should know.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self.path = path
        self.variant = variant
        self.notices: list[str] = []

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json, which names the pipeline and its parts. Raises MismatchError if minisd cannot run it."""
        if MODEL_INDEX not in list_folder(self.path):
            raise MismatchError(
                f"{self.path} has no {MODEL_INDEX}, so it is not a model in diffusers layout; give the folder that "
                "contains unet/, vae/ and text_encoder/, or a single weight file."
            )
        index = read_json(self.file(MODEL_INDEX))
        if str(name := index.get("_class_name")) not in READABLE_PIPELINES:
            raise MismatchError(
                f"{self.path} is a {shown(name)}, expected a StableDiffusionPipeline; minisd runs SD 1.x, 2.x and SDXL."
            )
        for suffix in ("", "_2"):
            classes = index.get(f"text_encoder{suffix}", [None, None])
            if not isinstance(classes, list) or [type(each) for each in classes] not in ([str] * 2, [type(None)] * 2):
                raise MismatchError(
                    f"{self.path / MODEL_INDEX} has text_encoder{suffix} {shown(classes)}, expected a library and a "
                    "class, or two times null."
                )
        return index

    @property
    def is_xl(self) -> bool:
        """Whether the model is of the SDXL family."""
        return str(self.index["_class_name"]).startswith("StableDiffusionXL")

    @property
    def text_suffixes(self) -> list[str]:
        """The suffixes of the text encoders' names: [""]; for SDXL ["", "_2"]; for its refiner ["_2"]."""
        if not self.is_xl:
            return [""]
        found = [s for s in ("", "_2") if self.index.get(f"text_encoder{s}", [None])[0] is not None]
        if "_2" not in found:
            raise MismatchError(f"{self.path / MODEL_INDEX} has no text_encoder_2, which every SDXL model has.")
        return found

    def file(self, name: str) -> Path:
        """The path of a file or folder in this folder. Raises UnsafeFileError if the name leads out of it."""
        return safe_join(self.path, name)

    def json(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """A JSON file of a part. Raises MismatchError if it is missing, FileFormatError if it is damaged."""
        name = _inside(part, name)
        path = self.file(name)
        if path.name not in list_folder(path.parent):
            raise MismatchError(f"{self.path} has no {name}; the model is incomplete, download it again.")
        return read_json(path)

    def weights(self, part: str) -> "Tensors":
        """The tensors of a part, mapped: those of its weight file, or of all shards that its index names.

        A part without the variant is read from its plain file, with a notice, if another part has the variant.
        Raises MismatchError (no weights, or missing shards), InputError (no part has the variant), FileFormatError (the
        index does not match its shards), and what opening weight files raises.
        """
        folder = self.file(part) if part else self.path
        names = list_folder(folder)
        chosen = choose_weights(names, self.variant)
        variants = sorted({variant for variant, _ in weight_files(names) if variant is not None})
        if chosen is None:
            hint = f" (only variant {', '.join(variants)}: pass variant={variants[0]!r})" if variants else ""
            raise MismatchError(f"{folder} has no weights{hint}; expected a .safetensors or .bin file.")
        if self.variant is not None and f".{self.variant}." not in chosen:
            if self.variant not in self._variants:
                raise InputError(
                    f"{self.path} has no weights of variant {shown(self.variant)}, expected "
                    f"{' or '.join(self._variants) or 'none'}; leave out the variant to read the plain weights."
                )
            self.notices.append(f"{part or folder.name} has no weights of variant {self.variant}; {chosen} is loaded.")
        if chosen.endswith(".json"):
            return self._open_shards(_inside(part, chosen))
        return self._open(_inside(part, chosen))

    @cached_property
    def _variants(self) -> list[str]:
        """The variants of weights that this folder, or one of the parts, has."""
        folders = [self.path, *(self.path / name for name in list_folder(self.path))]
        found = {variant for folder in folders for variant, _ in weight_files(list_folder(folder))}
        return sorted(variant for variant in found if variant is not None)

    def shards(self, index: str) -> dict[str, str]:
        """{tensor: weight file} as a shard index says; the files' names are relative to this folder, like `index`.

        Raises FileFormatError (not an index), UnsafeFileError (it names a file outside its own folder).
        """
        path = self.file(index)
        weight_map = read_json(path).get("weight_map")
        if (
            not weight_map
            or not isinstance(weight_map, dict)
            or not all(isinstance(v, str) for v in weight_map.values())
        ):
            raise FileFormatError(
                f"{path} has no 'weight_map' from tensor names to file names; download the index again."
            )
        files = {
            name: safe_join(path.parent, name).relative_to(self.path).as_posix()
            for name in dict.fromkeys(weight_map.values())
        }
        return {tensor: files[name] for tensor, name in weight_map.items()}

    def _open_shards(self, index: str) -> "Tensors":
        from weights_loader.build import Merged

        shard_of = self.shards(index)
        names = list(dict.fromkeys(shard_of.values()))
        missing = [name for name in names if not is_file(self.path / name)]
        if missing:
            raise MismatchError(f"{self.path} lacks the shards {', '.join(missing)} of {index}; download them again.")
        files = {name: self._open(name) for name in names}
        for tensor, name in shard_of.items():
            if tensor not in files[name].shapes:
                raise FileFormatError(f"{self.path / index} lists {tensor} in {name}, which lacks it; download both.")
        counts = Counter(tensor for file in files.values() for tensor in file.shapes)
        repeated = [tensor for tensor, count in counts.items() if count > 1]
        if repeated:
            raise FileFormatError(f"{self.path / index}: {repeated[0]} is in two shards; download the model again.")
        return Merged(files.values())

    def _open(self, name: str) -> "WeightFile":
        from weights_loader.formats.weight_file import open_weights  # here, because hub/ works without PyTorch

        path = self.file(name)
        file = open_weights(path)
        self.notices += [f"{path.name}: {notice}" for notice in file.notices]
        return file


def _inside(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def weight_files(names: Collection[str]) -> dict[tuple[str | None, str], str]:
    """The weight files among the names of one folder: {(variant, format): file name}.

    variant: "fp16", "non_ema" ..., or None for the plain file. format: "safetensors" or "bin". The index of a sharded
    file represents it.
    """
    found: dict[tuple[str | None, str], str] = {}
    for pattern in (_SHARD_INDEX, _WEIGHT_FILE):  # a single file replaces an index
        for name in sorted(names):
            if match := pattern.fullmatch(name):
                found[match["variant"], match["format"]] = name
    return found


def choose_weights(names: Collection[str], variant: str | None = None) -> str | None:
    """The weight file or shard index to load among the names of one folder; None if there is none.

    The variant is preferred to the plain file, then safetensors to .bin.
    """
    found = weight_files(names)
    preferred = [(v, f) for v in dict.fromkeys((variant, None)) for f in ("safetensors", "bin")]
    return next((found[key] for key in preferred if key in found), None)
