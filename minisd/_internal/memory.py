"""Memory: how much this process may still take, and the errors of all allocators as OutOfMemory."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from minisd.errors import InputError, OutOfMemory

REMEDIES = "choose a smaller size, fewer images at once or, on a GPU, dtype bfloat16"
CPU_MESSAGES = (  # torch has no class for these errors, which are RuntimeErrors
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "Cannot allocate memory",
)


@contextmanager
def translated(stage: str) -> Iterator[None]:
    """Raise OutOfMemory where memory is exhausted inside, or inside of a function that this decorates."""
    try:
        yield
        return
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        failure = explained(error, stage)
        if failure is None:
            raise
        error.__traceback__ = None  # its frames keep the tensors alive
    raise failure


def explained(error: BaseException, stage: str) -> OutOfMemory | None:
    """The OutOfMemory for an exception of Python, torch or an allocator; None for any other."""
    text = str(error)
    on_gpu = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
    is_of_cpu = isinstance(error, RuntimeError) and any(message in text for message in CPU_MESSAGES)
    if not (is_of_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)):
        return None
    asked = re.search(r"allocate ([\d.,]+ \w+)", text)
    free = amount(available(torch.device("cuda") if on_gpu else None))
    return OutOfMemory(f"{stage} needed {asked[1] if asked else 'memory'} more, {free} were left; {REMEDIES}.")


def check(needed: int, what: str, device: torch.device | None = None) -> None:
    """Refuse work that needs more bytes than there are; call it before anything is allocated.

    Raises InputError where the machine can never have them, OutOfMemory where they are in use or not allowed.
    """
    total, free = machine_memory(), available(device)
    if free is None or needed <= free:
        return
    if _is_on_cpu(device) and total is not None and needed > total:
        raise InputError(f"{what} needs about {amount(needed)}, this machine has {amount(total)}; {REMEDIES}.")
    raise OutOfMemory(f"{what} needs about {amount(needed)}, {amount(free)} are free or allowed; {REMEDIES}.")


def available(device: torch.device | None = None) -> int | None:
    """The bytes that this process may still take on a device: free ones, within its limits; None if unknown."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [each for each in (_free(), _left_of_address_space(), *_left_of_cgroups()) if each is not None]
    return max(0, min(known)) if known else None


def machine_memory() -> int | None:
    """The bytes of memory of this machine; None if unknown."""
    with suppress(ValueError, OSError, AttributeError):  # not every system reports its memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def amount(size: int | None) -> str:
    """A number of bytes for people."""
    if size is None:
        return "an unknown amount"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def _is_on_cpu(device: torch.device | None) -> bool:
    return device is None or device.type == "cpu"


def _free() -> int | None:
    """The free memory of the machine, caches and swap included."""
    with suppress(OSError, KeyError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return table["MemAvailable"] + table.get("SwapFree", 0)
    return None


def _left_of_address_space() -> int | None:
    """What `ulimit -v` leaves to this process."""
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource  # not on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None


def _left_of_cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the limits of containers and services leave, of this process's group and of those around it."""
    folders = [root, root / "memory"]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kind, path = line.split(":", 2)
            group = (root / "memory" if "memory" in kind.split(",") else root) / path.lstrip("/")
            folders += [each for each in (group, *group.parents) if each.is_relative_to(root)]
    for folder in dict.fromkeys(folders):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # no such group, or "max"
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                yield left + _reclaimable(folder)


def _reclaimable(folder: Path) -> int:
    """The bytes of a group that hold copies of files and are freed when needed."""
    with suppress(OSError, ValueError):
        rows = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        return sum(int(row[1]) for row in rows if row[0] == "inactive_file")
    return 0
