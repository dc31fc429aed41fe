"""The page as a folder to publish: what a Space of the Hugging Face hub needs, with the packages themselves."""

import platform
import re
import shutil
from pathlib import Path

import gradio as gr

from minisd._internal.atomic_folders import FileSet, check_folder, replace_files
from minisd.app.sources import PACKAGES, ROOT, linked_files
from minisd.errors import InputError

REQUIREMENTS = (  # those of pyproject.toml; tests/app/test_export.py compares them
    "torch>=2.10",
    "numpy>=1.26",
    "pillow>=10.3",
    "tokenizers>=0.20",
    "safetensors>=0.5",
    "huggingface_hub>=1.0",
    "tqdm>=4.66",
    "matplotlib>=3.8",
    "gradio>=6.31",
)
FILES = FileSet("app.py", re.compile(r"(app\.py|requirements\.txt|README\.md|(minisd|weights_loader|notebooks)/.*)"))


def export(folder: Path, model: str | None = None, overwrite: bool = False) -> None:
    """Write app.py, requirements.txt, README.md with the header of a Space, both packages and the linked lessons.

    model: a name or hub id that the page loads. Raises OutputError for a folder that is not empty, InputError for a
    model on this machine; then nothing is written.
    """
    if model is not None and Path(model).exists():
        raise InputError(f"model is {model!r}, which only this machine has, expected a name or a hub id of a model.")
    check_folder(folder, overwrite)
    replace_files(folder, lambda new: _write(new, model), FILES, overwrite)


def _write(folder: Path, model: str | None) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for address, path in linked_files().items():
        if path.suffix == ".ipynb":
            target = folder / address.removeprefix("source/")
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    for name, text in (
        ("app.py", _program(model)),
        ("requirements.txt", "\n".join(REQUIREMENTS) + "\n"),
        ("README.md", _readme()),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _program(model: str | None) -> str:
    return f'''"""The demos of minisd as a page of the Hugging Face hub; written by `minisd app --export`."""

import os

from minisd.app.server import serve

serve(model={model!r}, host="0.0.0.0", port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
'''


def _readme() -> str:
    python = ".".join(platform.python_version_tuple()[:2])
    return f"""---
title: minisd
emoji: 🎨
colorFrom: blue
colorTo: purple
sdk: gradio
sdk_version: {gr.__version__}
python_version: "{python}"
app_file: app.py
license: mit
short_description: Stable Diffusion, part by part
---

# minisd: Stable Diffusion, part by part

Every part of Stable Diffusion, to play with: write a prompt, change a setting, see what the part does. The model is
part of this folder. `python app.py` serves the page on port 7860.
"""
