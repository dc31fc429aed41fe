"""Files written completely or not at all: reference/reliability.md, O1-O3 and section 4, "Checkpoint writer"."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from minisd._internal.atomic_files import check_target, write_atomically, write_json
from minisd.errors import InputError, OutputError
from weights_loader.formats.safetensors import save_safetensors

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {"a": torch.ones(6, 8)}


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


WRITERS: list[Callable[..., None]] = [
    lambda path, **options: save_safetensors(TENSORS, path, **options),
    lambda path, **options: write_json({"a": [1, "é"]}, path, **options),
    lambda path, **options: write_atomically(path, lambda file: file.write(b"new"), **options),
]


@pytest.mark.parametrize("write", WRITERS)
def test_targets(tmp_path: Path, write: Callable[..., None]) -> None:
    """O1, O2: what would be damaged is refused, before any work."""
    path = tmp_path / "file"
    write(path)
    first = path.read_bytes()
    write(path, overwrite=True)
    assert path.read_bytes() == first  # the positive controls, and the same bytes each time
    path.write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for name, options in [
        ("file", {}),
        ("folder", {"overwrite": True}),
        ("link", {"overwrite": True}),
        ("dangling", {"overwrite": True}),
        ("pipe", {"overwrite": True}),
        ("absent/file", {}),
        ("file/file", {}),
        ("a\0b", {}),
        ("x" * 300, {}),
    ]:
        with pytest.raises(OutputError):
            write(tmp_path / name, **options)
        assert path.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_no_work_for_a_target_that_cannot_be(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise AssertionError("worked")

    (tmp_path / "file").touch()
    for path in [tmp_path / "file", tmp_path / "absent" / "file"]:
        with pytest.raises(OutputError):
            write_atomically(path, write)
        with pytest.raises(OutputError):
            check_target(path)
    check_target(tmp_path / "other")
    check_target(tmp_path / "file", overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="read-only"):
        save_safetensors(TENSORS, tmp_path / "x")


def test_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    umask = os.umask(0o027)
    try:
        write_atomically(path, lambda file: file.write(b"1"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_atomically(path, lambda file: file.write(b"2"), overwrite=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604  # that of the file before
    finally:
        os.umask(umask)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("where", ["write", "check"])
def test_failure_leaves_the_old_file(tmp_path: Path, failure: BaseException, where: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        if where == "write":
            file.write(b"half")
        raise failure

    write = fail if where == "write" else lambda file: file.write(b"new")
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)) as caught:
        write_atomically(path, write, overwrite=True, check=fail if where == "check" else None)
    if isinstance(failure, OSError):
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_target_that_appears_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OutputError, match="exists"):
        write_atomically(path, lambda file: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from minisd._internal.atomic_files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write, overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed(tmp_path: Path) -> None:
    """The old file survives, and the next write to the same target removes the temporary file, but no other."""
    path, other = tmp_path / "file", tmp_path / "other"
    for target in (path, other):
        target.write_bytes(b"old")
        assert run(KILLED, target).returncode == -signal.SIGKILL
        assert target.read_bytes() == b"old"
    leftovers = set(tmp_path.glob(".minisd-*.tmp"))
    assert [leftover.read_bytes() for leftover in leftovers] == [b"half"] * 2
    write_atomically(path, lambda file: file.write(b"new"), overwrite=True)
    assert path.read_bytes() == b"new"
    assert len(leftovers & set(tmp_path.iterdir())) == 1
    write_atomically(other, lambda file: file.write(b"new"), overwrite=True)
    assert set(tmp_path.iterdir()) == {path, other}


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed")
def test_two_writers_of_one_target_do_not_mix(tmp_path: Path) -> None:
    """The one that began later wins; the other one's bytes are nowhere."""
    path = tmp_path / "file"

    def write(file: BinaryIO) -> None:
        file.write(b"first, ")
        write_atomically(path, lambda file: file.write(b"second"), overwrite=True)
        file.write(b"continued")

    with pytest.raises(OutputError, match="file could not be written"):
        write_atomically(path, write, overwrite=True)
    assert path.read_bytes() == b"second"
    assert set(tmp_path.iterdir()) == {path}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json({"b": [1, None, "é"], "a": 1e-5}, path)
    assert json.loads(path.read_bytes()) == {"b": [1, None, "é"], "a": 1e-5}
    assert path.read_bytes().endswith(b"}\n")
    loop: list[Any] = []
    loop.append(loop)
    for bad in [float("nan"), object(), {1j: 1}, "\ud800", loop]:
        with pytest.raises(InputError, match=r"a\.json"):
            write_json(bad, path, overwrite=True)
    assert json.loads(path.read_bytes())["a"] == 1e-5
