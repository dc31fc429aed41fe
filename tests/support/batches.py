"""Many cases in child processes: one that crashes, hangs or takes too much memory is found and named."""

import json
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator

LONGEST = 20  # seconds of one case
MEMORY = 2**31  # bytes that a child may take beyond what it has
GROWTH = 300 * 1024  # KiB by which one case may raise the peak


def outcomes(count: int, case: Callable[[int], str], first: int = 0) -> Iterator[tuple[int, str]]:
    """(number, what `case` returned), or "crash: ...", "hang", "memory: ...", "raw: ..." of each number."""
    number = first
    while number < first + count:
        pid, pipe = _start(number, first + count, case)
        with os.fdopen(pipe, "rb") as reader:
            while True:
                if not select.select([reader], [], [], LONGEST)[0]:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    yield number, "hang"
                    break
                line = reader.readline()
                if not line:
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    if number < first + count:
                        yield number, f"crash: exit {status}"
                    break
                yield number, json.loads(line)
                number += 1
        number += 1  # behind the one that ended the child


def _start(begin: int, end: int, case: Callable[[int], str]) -> tuple[int, int]:
    import resource  # not on Windows

    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        for number in range(begin, end):
            before = _peak()
            try:
                text = case(number)
            except BaseException:
                text = "raw: " + traceback.format_exc()[-1500:]
            if _peak() - before > GROWTH and number > begin:
                text = f"memory: {(_peak() - before) // 1024} MiB, {text}"
            os.write(writer, (json.dumps(text) + "\n").encode())
    finally:
        os._exit(0)


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
