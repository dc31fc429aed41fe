"""Load a preview decoder from the layout of diffusers' AutoencoderTiny: config.json and one weight file.

The weight file of an AutoencoderTiny also holds an encoder, which is not loaded.
"""

import os
from pathlib import Path

import torch

from minisd._internal import memory
from minisd._internal.model_files import is_file
from minisd.errors import InputError, MismatchError
from minisd.models import PreviewDecoder
from weights_loader.devices import check_device, check_dtype
from weights_loader.loading import load_network
from weights_loader.model_folder import MODEL_INDEX, PREVIEW_FOLDER
from weights_loader.sources import EMBEDDED, HUB_ID, resolve

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # to download


@memory.translated("loading the preview decoder")
def load_preview_decoder(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offline: bool | None = None,
    progress: bool = True,
) -> PreviewDecoder:
    """A preview decoder, for `sd.preview_decoder`.

    source: "sticker"; a model folder with a folder `preview`; a folder in the layout of diffusers' AutoencoderTiny; a
    hub id, such as "madebyollin/taesd" for SD 1.x and 2.x or "madebyollin/taesdxl" for SDXL. offline, progress: for the
    hub. Raises the classes of minisd.errors; a decoder is loaded completely or not at all.
    """
    check_dtype(dtype)
    device = check_device(device)
    path = _folder(source, offline, progress)
    if is_file(path / MODEL_INDEX):
        if not is_file(path / PREVIEW_FOLDER / "config.json"):
            raise MismatchError(
                f"{path} is a model without a preview decoder (a folder {PREVIEW_FOLDER}/ with config.json); give a "
                "decoder's own folder or hub id, such as madebyollin/taesd for SD 1.x and 2.x."
            )
        path = path / PREVIEW_FOLDER
    return load_network(path, PreviewDecoder, device=device, dtype=dtype)


def _folder(source: str | Path, offline: bool | None, progress: bool) -> Path:
    """The folder of a source, downloaded if it is a hub id."""
    if source == EMBEDDED:
        return resolve(EMBEDDED)
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return path
    if isinstance(source, Path) or os.path.exists(path) or not HUB_ID.fullmatch(source):
        raise InputError(
            f"{str(source)[:200]!r} is not a folder, expected 'sticker', a folder in the layout of diffusers' "
            "AutoencoderTiny, or a hub id such as madebyollin/taesd."
        )
    from weights_loader.hub.download import download_files  # here, because local sources do not need the hub client

    return download_files(source, FILES, offline, progress)
