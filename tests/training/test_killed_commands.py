"""Each command that adapts a model, killed (SIGKILL) at random steps and repeated, ends as one that was not killed."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from support.runs import Clock
from support.small import small_pipeline
from support.training_images import training_images

import weights_loader
from minisd import images
from minisd.cli import main
from minisd.pipeline import Defaults
from minisd.training import trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

STEPS = 6
SUBJECT = ("--start-from", "{model}", "--pictures", "{subject}", "--steps", str(STEPS), "--batch", "2")
CAT = ("--prompt", "a red cat")
CLASS = ("--class-prompt", "a cat", "--class-images", "3")
COMMANDS = {
    "full": ("train", "full", "{run}", *SUBJECT, *CAT, "--text-encoder"),
    "dreambooth": ("train", "dreambooth", "{run}", *SUBJECT, *CAT, *CLASS),
    "lora": ("train", "lora", "{run}", *SUBJECT, *CAT),
    "lora, text encoder": ("train", "lora", "{run}", *SUBJECT, *CAT, "--text-encoder", "--gradient-checkpointing"),
    "embedding": ("train", "embedding", "{run}", *SUBJECT, "--prompt", "a <x>", "--token", "<x>", "--like", "cat"),
    "distill, progressive": ("train", "distill", "{run}", *SUBJECT, *CAT, "--from", "8", "--to", "2"),
    "distill, guided": ("train", "distill", "{run}", *SUBJECT, *CAT, "--method", "guided"),
    "edit": (
        "edit", "a red cat", "--model", "{model}", "--image", "{subject}/0.png", "--folder", "{run}",
        "--training-steps", f"{STEPS},{STEPS}", "--eta", "0.7", "--output", "{run}.png",
    ),
}  # fmt: skip
FAST = ("lora", "embedding")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A small model, and two images."""
    sd = small_pipeline(sd2=True)
    sd.defaults = Defaults(num_inference_steps=2, guidance_scale=3.0)
    weights_loader.save(sd, tmp_path / "model")
    (tmp_path / "subject").mkdir()
    for k, image in enumerate(images.to_pil(training_images("a cat", 2).pixels)):
        images.save(image, tmp_path / "subject" / f"{k}.png")
    return {"model": tmp_path / "model", "subject": tmp_path / "subject"}


def status_of(command: list[str], step: int) -> int:
    """Run a command in a process of its own, which is killed within its training step number `step`, from 1 on."""
    pid = os.fork()
    if pid > 0:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        torch.set_num_threads(1)
        trainer.time.monotonic = Clock(tick=50).monotonic  # saves every third step
        left, whole_steps = iter(range(step - 1, -1, -1)), trainer._whole_steps

        def deadly() -> object:
            if next(left, -1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole_steps()

        trainer._whole_steps = deadly  # type: ignore[assignment]
        os._exit(main(command))
    finally:
        os._exit(1)


def results(run: Path) -> dict[str, object]:
    """Everything that a command leaves: the weights in the files of its runs, and the bytes of all other files."""
    left: dict[str, object] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".previous"):
        name = str(path.relative_to(run))
        if path.suffix != ".pt":
            left[name] = path.read_bytes()
            continue
        state = torch.load(path, weights_only=True)
        for part in ("model", "average"):
            left |= {f"{name}.{part}.{key}": tensor for key, tensor in state[part].items()}
    return left


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
)
def test_killed_at_random_steps(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    chance, never = random.Random(name), 10**6
    whole, parts = ([part.format(run=tmp_path / run, **folders) for part in COMMANDS[name]] for run in "ab")
    assert status_of(whole, never) == 0
    kills = 0
    while (status := status_of(parts, chance.randint(2, 5))) != 0:
        assert status == -signal.SIGKILL
        kills += 1
    assert kills >= 1
    expected, got = results(tmp_path / "a"), results(tmp_path / "b")
    assert got.keys() == expected.keys()
    assert sum(isinstance(value, torch.Tensor) for value in expected.values()) >= 2
    for key, value in expected.items():
        same = torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value
        assert same, key
