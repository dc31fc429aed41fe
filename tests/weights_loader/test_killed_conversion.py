"""kill -9 of `minisd convert` over an existing target: it is wholly the old or the new model, and nothing is left."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.saved_models import same_weights
from support.small import small_pipeline, write_tokenizer

import weights_loader
from minisd.cli import main
from minisd.pipeline import StableDiffusion


def models() -> tuple[StableDiffusion, StableDiffusion]:
    first, second = small_pipeline(), small_pipeline()
    with torch.no_grad():
        for network in (second.text_encoder, second.vae, second.unet):
            for parameter in network.parameters():
                parameter += 0.001
    return first, second


def convert(source: Path, target: Path) -> int:
    """The id of a process that converts."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        vocabulary = ["--tokenizer", str(source.parent / "vocabulary")] if source.is_file() else []
        os._exit(main(["convert", str(source), str(target), "--overwrite", *vocabulary]))
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("to_folder", [True, False], ids=["file to folder", "folder to file"])
@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_conversions(tmp_path: Path, to_folder: bool, kills: int) -> None:
    chance, both, sources = random.Random(kills), models(), tmp_path / "sources"
    sources.mkdir()
    write_tokenizer(sources / "vocabulary")
    places = [sources / (f"{i}.safetensors" if to_folder else str(i)) for i in (0, 1)]
    for sd, place in zip(both, places, strict=True):
        weights_loader.save(sd, place, layout="ldm" if to_folder else "diffusers")
    before = {path: path.read_bytes() for path in sources.rglob("*") if path.is_file()}
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / ("m" if to_folder else "m.safetensors")

    def which() -> int:
        """The number of the model that the target is, wholly."""
        found = weights_loader.load(target, tokenizer=None if to_folder else both[0].tokenizer)
        (number,) = (i for i, sd in enumerate(both) if same_weights(found, sd))
        return number

    for _ in range(2):
        begin = time.perf_counter()
        assert os.waitstatus_to_exitcode(os.waitpid(convert(places[0], target), 0)[1]) == 0
        length = time.perf_counter() - begin
    counts: Counter[str] = Counter()
    now = 0
    while counts["killed"] < kills:
        pid = convert(places[1 - now], target)
        time.sleep(length * chance.uniform(0.2, 1.1))
        os.kill(pid, signal.SIGKILL)
        died = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        counts["killed"] += died
        length *= 1.03 if died else 0.9  # other processes change it
        if target.exists():
            counts["new"] += which() != now
            now = which()
        else:  # between two renames: the old one is whole under a hidden name, and the next run puts it back
            counts["hidden"] += 1
            assert len(list(target.parent.glob(".minisd-*.old"))) == 1
    print(dict(counts), sorted(os.listdir(target.parent)))
    assert os.waitstatus_to_exitcode(os.waitpid(convert(places[1], target), 0)[1]) == 0
    assert which() == 1
    assert os.listdir(target.parent) == [target.name]
    assert {path: path.read_bytes() for path in sources.rglob("*") if path.is_file()} == before
