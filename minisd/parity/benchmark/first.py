"""Rows of a command from its start to its end: the first image, and the help; float32 on the CPU."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from minisd.images import from_pil
from minisd.parity.benchmark.new_process import output_of
from minisd.parity.benchmark.rows import Row, Setup, error
from minisd.parity.benchmark.timing import CLOCKS
from minisd.parity.benchmark.workloads import GUIDANCE, IMAGE_TOLERANCE, PROMPT, STEPS

SCRIPT = """
import sys
import torch
from diffusers import StableDiffusionPipeline

folder, prompt, steps, guidance, size, file = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
image = pipeline(
    prompt, height=int(size), width=int(size), num_inference_steps=int(steps), guidance_scale=float(guidance),
    generator=torch.Generator().manual_seed(0),
).images[0]
image.save(file)
"""


def rows(setup: Setup) -> Iterator[Row]:
    """The first image that a new process draws and saves; the help."""
    with tempfile.TemporaryDirectory(prefix="minisd-bench-") as folder:
        yield _first_image(setup, Path(folder), PROMPT, str(STEPS), str(GUIDANCE), str(setup.size))
    commands = {
        "diffusers": [sys.executable, "-m", "diffusers.commands.diffusers_cli", "--help"],
        "minisd": [sys.executable, "-m", "minisd", "--help"],
    }
    times = _alternate(commands, setup)
    yield Row("--help of the command line", "cpu", "", "s", times["diffusers"], times["minisd"], error=0.0)


def _first_image(setup: Setup, folder: Path, prompt: str, steps: str, guidance: str, size: str) -> Row:
    files = {library: folder / f"{library}.png" for library in ("diffusers", "minisd")}
    model, theirs, ours = str(setup.folder), str(files["diffusers"]), str(files["minisd"])
    options = ["--steps", steps, "--guidance", guidance, "--height", size, "--width", size, "--seed", "0"]
    options += ["--scale", "1", "--overwrite", "--model", model, "--device", "cpu", "-o", ours]
    commands = {
        "diffusers": [sys.executable, "-c", SCRIPT, model, prompt, steps, guidance, size, theirs],
        "minisd": [sys.executable, "-m", "minisd", prompt, *options],
    }
    times = _alternate(commands, setup)
    images = {library: from_pil(Image.open(file)) for library, file in files.items()}  # in [-1, 1]
    difference = error((images["minisd"] + 1,), (images["diffusers"] + 1,))
    what = f"first image from a new process, {steps} steps"
    return Row(what, "cpu", "float32", "s", times["diffusers"], times["minisd"], difference, gate=IMAGE_TOLERANCE)


def _alternate(commands: dict[str, list[str]], setup: Setup) -> dict[str, list[float]]:
    """The seconds of each command, in turn; the first run of each, which fills the cache of files, does not count."""
    times: dict[str, list[float]] = {library: [] for library in commands}
    seconds = CLOCKS[setup.clock]
    for _ in range(1 + setup.repeats):
        for library, command in commands.items():
            began = seconds()
            output_of(command, " ".join(command[1:4]))
            times[library].append(seconds() - began)
    return {library: each[1:] for library, each in times.items()}
