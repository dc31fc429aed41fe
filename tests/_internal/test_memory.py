"""What is free: of the machine, of a container, of the address space."""

from pathlib import Path

import pytest

from minisd._internal import memory
from minisd.errors import InputError, OutOfMemory


def test_limits_of_containers_and_of_the_groups_around_them(tmp_path: Path) -> None:
    inner, old = tmp_path / "service" / "inner", tmp_path / "memory"
    inner.mkdir(parents=True)
    old.mkdir()
    for folder, names, limit, used in (
        (inner, ("memory.max", "memory.current"), "max", "50"),
        (inner.parent, ("memory.max", "memory.current"), "1000", "600"),
        (old, ("memory.limit_in_bytes", "memory.usage_in_bytes"), "800", "100"),
    ):
        (folder / names[0]).write_text(limit)
        (folder / names[1]).write_text(used)
    (inner.parent / "memory.stat").write_text("anon 500\ninactive_file 70\n")
    (tmp_path / "own").write_text("0::/service/inner\n")
    assert sorted(memory._left_of_cgroups(tmp_path, tmp_path / "own")) == [470, 700]


def test_too_much_for_the_machine_or_only_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**32)
    monkeypatch.setattr(memory, "available", lambda device=None: 2**31)
    memory.check(2**31, "it")
    with pytest.raises(OutOfMemory, match=r"it needs about 3\.0 GiB, 2\.0 GiB are free or allowed; choose a smaller"):
        memory.check(3 * 2**30, "it")
    with pytest.raises(InputError, match=r"it needs about 5\.0 GiB, this machine has 4\.0 GiB"):
        memory.check(5 * 2**30, "it")


def test_only_errors_of_allocators_are_translated() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.translated("the stage"):
        raise RuntimeError("shapes differ")
    with pytest.raises(OutOfMemory, match="the stage needed memory more"), memory.translated("the stage"):
        raise MemoryError
