"""Files that belong together: after any end of a writer they are all old or all new, and no other file is lost."""

import errno
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from minisd._internal.atomic_folders import FileSet, replace_files
from minisd.errors import InputError, OutputError

PARTS = ("a/weights", "a/config", "b/weights", "words", "mark")
FILES = FileSet("mark", re.compile(r"[ab]/(?:weights.*|config)?|words|added|mark"))
OTHERS = {"README.md": "mine", "a/notes.txt": "also mine", "pictures/cat/1.png": "a cat"}


def fill(folder: Path, text: str, names: tuple[str, ...] = PARTS) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(folder: Path, text: str, overwrite: bool = True) -> None:
    replace_files(folder, lambda new: fill(new, text), FILES, overwrite)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def folder_with_others(tmp_path: Path) -> Path:
    """A set of old files, with one that the new set lacks, and files of somebody else."""
    folder = tmp_path / "m"
    fill(folder, "old", (*PARTS, "added", "b/weights.fp16"))
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_old_set_is_replaced_and_other_files_are_kept(tmp_path: Path) -> None:
    folder = folder_with_others(tmp_path)
    folder.chmod(0o750)
    inode = (folder / "README.md").stat().st_ino
    save(folder, "new")
    assert contents(folder) == dict.fromkeys(PARTS, "new") | OTHERS
    assert os.name == "nt" or stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert (folder / "README.md").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["m"]
    save(tmp_path / "deep" / "er" / "n", "first", overwrite=False)
    assert contents(tmp_path / "deep" / "er" / "n") == dict.fromkeys(PARTS, "first")


@pytest.mark.parametrize("why", ["current folder", "no mark", "mount point", "a mount that is not seen", "no parent"])
def test_files_move_one_by_one_where_a_folder_cannot_be_renamed(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with_others(tmp_path)
    inode, rename, access = folder.stat().st_ino, os.rename, os.access
    if why == "current folder":
        monkeypatch.chdir(folder / "pictures")
    elif why == "no mark":
        (folder / "mark").unlink()
    elif why == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    elif why == "no parent":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    else:

        def refuse(source: Path, target: Path) -> None:
            if Path(source) == folder:
                raise OSError(errno.EBUSY, "Device or resource busy")
            rename(source, target)

        monkeypatch.setattr(os, "rename", refuse)
    save(folder, "new")
    assert folder.stat().st_ino == inode
    assert contents(folder) == dict.fromkeys(PARTS, "new") | OTHERS
    assert os.listdir(tmp_path) == ["m"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="one of the folders above it is a file"):
        replace_files(tmp_path / "file" / "model", lambda new: None, FILES, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), InputError("no"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("marked", [True, False])
def test_an_error_changes_nothing(tmp_path: Path, error: BaseException, marked: bool) -> None:
    folder = folder_with_others(tmp_path)
    if not marked:
        (folder / "mark").unlink()
    before = contents(folder)

    def write(new: Path) -> None:
        fill(new, "new", PARTS[:2])
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as caught:
        replace_files(folder, write, FILES, overwrite=True)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{folder} cannot be written (No space left on device); it is unchanged."
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["m"]


def test_the_old_folder_is_put_back_where_the_new_one_cannot_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with_others(tmp_path)
    before, rename = contents(folder), os.rename

    def refuse_the_new_one(source: str | Path, target: str | Path) -> None:
        if Path(source).suffix == ".new":
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_new_one)
    with pytest.raises(OutputError, match="it is unchanged"):
        save(folder, "new")
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["b", "a/config/mine.txt"])
def test_what_is_in_the_way_is_named_and_kept(tmp_path: Path, name: str, marked: bool) -> None:
    folder = tmp_path / "m"
    fill(folder, "mine", (name, *(["mark"] if marked else [])))
    before = contents(folder)
    with pytest.raises(OutputError, match="in the way"):
        save(folder, "new")
    assert contents(folder) == before


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    save(tmp_path / "full", "old")
    before = contents(tmp_path)
    for name in ("file", "file/m", "full", "x" * 256, "x" * 256 + "/m", "a\0b", "full/m/\0"):
        with pytest.raises(OutputError) as caught:
            replace_files(tmp_path / name, lambda new: pytest.fail("worked"), FILES)
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="None"):
        replace_files(None, lambda new: None, FILES)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights")
def test_links(tmp_path: Path) -> None:
    """A link to the folder stays one; a component that is a link is replaced; links to other files are kept."""
    save(tmp_path / "m", "old")
    fill(tmp_path / "elsewhere", "theirs", ("weights", "x"))
    shutil.rmtree(tmp_path / "m" / "a")
    (tmp_path / "m" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m" / "pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m" / "nowhere").symlink_to("absent")
    (tmp_path / "link").symlink_to("m")
    save(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "elsewhere") == {"weights": "theirs", "x": "theirs"}
    assert not (tmp_path / "m" / "a").is_symlink()
    assert {name: (tmp_path / "m" / name).read_text() for name in PARTS} == dict.fromkeys(PARTS, "new")
    assert (tmp_path / "m" / "pictures").readlink() == tmp_path / "elsewhere"
    assert (tmp_path / "m" / "nowhere").is_symlink()


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    def write(new: Path) -> None:
        with pytest.raises(OutputError, match="another process is writing"):
            save(tmp_path / "m", "second")
        fill(new, "first")

    replace_files(tmp_path / "m", write, FILES)
    assert contents(tmp_path / "m") == dict.fromkeys(PARTS, "first")
    save(tmp_path / "m", "third")
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("marked", [True, False])
def test_killed_before_each_change_of_the_file_system(tmp_path: Path, marked: bool) -> None:
    """The old set, the new one, or no mark; the next writer repairs everything, and other files are never lost."""
    states = set()
    for count in range(200):
        folder = tmp_path / str(count) / "m"
        folder.parent.mkdir()
        folder_with_others(folder.parent)
        if not marked:
            (folder / "mark").unlink()
        was_killed = killed_while_saving(folder, count)
        found = contents(folder) if folder.exists() else {}
        if "mark" in found:
            assert {found[name] for name in PARTS} == {found["mark"]}
        states.add(found.get("mark"))
        save(folder, "newest")
        assert contents(folder) == dict.fromkeys(PARTS, "newest") | OTHERS
        assert os.listdir(folder.parent) == ["m"]
        if not was_killed:
            break
    assert count > 20
    assert states == {"old", None, "new"} if marked else {None, "new"}


def killed_while_saving(folder: Path, count: int) -> bool:
    """Save in a process that dies before its change number `count` of the file system; whether it died."""
    pid = os.fork()
    if pid == 0:
        try:
            left = count

            def deadly(real: Callable[..., object], *arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            for name in ("rename", "replace", "unlink", "link", "rmdir", "mkdir"):
                setattr(os, name, partial(deadly, getattr(os, name)))
            save(folder, "new")
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
