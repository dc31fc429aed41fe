"""The models of the page, once for all tests, and a server of the page as a visitor's browser finds it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.page_server import Server
from support.source_files import ROOT

from minisd.app.models import Models
from minisd.pipeline import StableDiffusion


@pytest.fixture(scope="session")
def models() -> Models:
    return Models(device="cpu")


@pytest.fixture(scope="session")
def sticker(models: Models) -> StableDiffusion:
    return models.load("sticker")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """`minisd app` on a free port of this machine, without a network beyond it."""
    command = [sys.executable, "-m", "minisd", "app", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"(http://127\.0\.0\.1:\d+) ", line)
            assert found, f"the server printed {line!r}"
            yield Server(found[1], process.pid)
        finally:
            process.terminate()
