"""kill -9 while a new version of a model is downloaded: the cache holds the old one or the new one, wholly."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.local_hub import LocalHub
from support.source_files import ROOT

# Forks one child for each kill. After it: what is found offline, and what is left once a run was not killed.
DRIVER = """
import json, os, random, signal, sys, time, types
for name in ("minisd", "weights_loader"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + "/" + name]
from pathlib import Path
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
from minisd.errors import HubOffline
from weights_loader.sources import resolve
chance = random.Random(3)

def download(seconds=None):
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            resolve("me/model", progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, time.perf_counter() - start

def cached():
    folder = Path(resolve("me/model", offline=True))
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}

def leftovers():
    return [p.name for p in Path(constants.HF_HOME).rglob("*") if p.name.endswith((".incomplete", ".tmp"))]

resolve("me/model", progress=False)  # imports all that the children need
length = 0
for line in sys.stdin:
    killed = line.strip() == "kill"
    status, taken = download(chance.random() * length if killed else None)
    length = length if killed else taken
    print(json.dumps([status, cached(), leftovers()]), flush=True)
"""


def version(number: int) -> dict[str, bytes]:
    """A model whose every file differs from that of other versions."""
    parts = ("text_encoder", "unet", "vae", "tokenizer", "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "number": number, **{part: ["x", "X"] for part in parts}}
    small = [f"{part}/config.json" for part in ("text_encoder", "unet", "vae")]
    small += ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
    files = {"model_index.json": json.dumps(index).encode()} | dict.fromkeys(small, b'{"is": %d}' % number)
    weights = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    return files | {f"{name}.safetensors": b"%05d" % number * 2000 for name in weights}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_downloads(tmp_path: Path, kills: int) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    settings = {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "IMPLICIT_TOKEN", "TELEMETRY")}
    with LocalHub() as hub:
        env = clean | settings | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        command = [sys.executable, "-c", DRIVER, str(ROOT)]
        pipe = subprocess.PIPE
        hub.repos["me/model"] = version(0)
        with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as driver:
            assert driver.stdin is not None
            assert driver.stdout is not None

            def step(number: int, how: str) -> tuple[int, dict[str, str], list[str]]:
                hub.repos["me/model"] = version(number)
                print(how, file=driver.stdin, flush=True)
                status, files, left = json.loads(driver.stdout.readline())
                return status, files, left

            def text(number: int) -> dict[str, str]:
                return {name: content.decode() for name, content in version(number).items()}

            assert step(1, "run") == (0, text(1), [])
            counts: Counter[str] = Counter()
            old = 1
            while counts["killed"] < kills:
                new = old + 1
                status, files, left = step(new, "kill")
                counts.update({"killed": status < 0, "new": files == text(new), "leftovers": bool(left)})
                assert files in (text(old), text(new)), "mixed"
                if counts["killed"] % 5 == 0 or counts["killed"] == kills:  # else one kill after another
                    assert step(new, "run") == (0, text(new), [])
                    old = new
                elif files == text(new):
                    old = new
            print(dict(counts))
            driver.stdin.close()
