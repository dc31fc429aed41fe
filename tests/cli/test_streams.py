"""Standard streams that are closed or full, and Ctrl-C: an exit code, one sentence where possible, no image lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the shell of POSIX closes streams")
ROOT = Path(__file__).parents[2]
DRAW = "a --steps 1 --seed 18446744073709551615 --count 2 --quiet -o a.png"


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run `minisd LINE`, which may redirect its streams, in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = f'"{sys.executable}" -m minisd {line}'
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("", 0, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 8, "minisd: standard output could not be written (No space left on device)"),
        ("2>/dev/full", 0, ""),
        ("| head -1", 0, ""),
    ],
)
def test_no_image_is_lost_to_a_stream(tmp_path: Path, redirection: str, code: int, message: str) -> None:
    """The seeds of both wrap, as those of the pipeline do."""
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    done = shell(tmp_path, f"{DRAW} {redirection}")
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == bool(message)
    assert [Image.open(tmp_path / f"a-{k}.png").text["seed"] for k in (1, 2)] == ["18446744073709551615", "0"]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("- --quiet <&-", 2, "minisd: the prompt is -, but standard input is closed"),
        ("a --steps 0 2>&-", 2, ""),
        ("--help >/dev/full", 8, "minisd: standard output could not be written"),
    ],
)
def test_refusals_with_closed_streams(tmp_path: Path, line: str, code: int, message: str) -> None:
    done = shell(tmp_path, line)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)


INTERRUPTED_AT = """
import os, signal, sys
from minisd.__main__ import main
wanted = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["minisd.cli.options", "numpy._core.multiarray", "torch._C", "PIL.Image"])
def test_an_interruption_while_packages_are_imported_is_one_line(tmp_path: Path, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module, "a", "--quiet"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (130, "minisd: interrupted; files that were saved are complete\n")
    assert list(tmp_path.iterdir()) == []
