"""`minisd bench`: measure minisd and diffusers with the same weights in one run, and print a table."""

import argparse
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minisd._internal import validation
from minisd._internal.atomic_files import check_target, write_json, write_text
from minisd.cli.bench_options import ROWS
from minisd.cli.options import DTYPES
from minisd.errors import InputError, NumericalError, OutputError
from minisd.parity.benchmark import first, implementations, load, machine, measure, memory
from minisd.parity.benchmark.families import FAMILIES, FamilyConfigs, tiny
from minisd.parity.benchmark.rows import HEADER, MAX_TOLERANCE, Measure, Row, Setup, line
from minisd.parity.benchmark.workloads import IMAGE_TOLERANCE, TOLERANCE, WORKLOADS

USUAL_DTYPES = {"cpu": "float32,bfloat16", "cuda": "bfloat16,float16"}
NOT_FOR_XL = ("image", "first")
ONE = "only the first of its two text encoders is measured, so it cannot draw."
TINY_SIZE = 64
LISTENING = 0.5  # seconds of listening to other processes
FILE_OPTIONS = ("keep", "json", "markdown", "overwrite")
MEASURES: dict[str, Measure] = {
    "load": load.rows,
    **{name: partial(measure.rows, name) for name in WORKLOADS},
    "memory": memory.rows,
    "first": first.rows,
}
EXPLANATION = f"""\
medians (min to max); ratio = diffusers / minisd; tuned: diffusers with channels_last, and fused AdamW
of peak: the share of the convolution's rate that minisd reaches
accuracy: error / largest value, relative to diffusers in float32; {TOLERANCE:g}, for images {IMAGE_TOLERANCE:.4f}, or \
twice diffusers' own error passes, and never more than {MAX_TOLERANCE:g}
"""


class Plan(NamedTuple):
    """What to measure: checked options."""

    configs: FamilyConfigs
    size: int
    targets: list[tuple[torch.device, torch.dtype]]
    names: list[str]
    repeats: int
    threads: int


def run(args: argparse.Namespace) -> int:
    """Make the weights, measure, print the table; 6 if a row misses its accuracy gate."""
    plan = _plan(args)
    versions = implementations.require_oracle()
    report: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        report.append(text)

    with _threads(plan.threads), _weights_folder(args.keep, args.family + "-tiny" * args.tiny) as folder:
        content = _measured(args, plan, folder, versions, say)
    rows = content["rows"]
    missed = sum(not row["passes"] for row in rows)
    if missed:
        say(f"{missed} of {len(rows)} rows miss the accuracy gate")
    if args.markdown is not None:
        write_text("\n".join(report) + "\n", args.markdown, args.overwrite)
        print(f"{args.markdown}  this report")
    if args.json is not None:
        write_json(content, args.json, args.overwrite)
        print(f"{args.json}  all measurements")
    return NumericalError.exit_code if missed else 0


def _measured(
    args: argparse.Namespace, plan: Plan, folder: Path, versions: dict[str, str], say: Callable[[str], None]
) -> dict[str, Any]:
    """All measurements, said line by line; the content of the JSON file."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    described = machine.describe(versions)
    say(f"minisd bench: {args.family}{', tiny' * args.tiny}, {plan.size} x {plan.size} pixels, {date}\n")
    say(", ".join(f"{key} {value}" for key, value in described.items()))
    before = machine.OtherProcesses()
    time.sleep(LISTENING)
    others = {"before": before.cores()}
    say(machine.note_on_others(others["before"], "before the measurements"))
    peaks = [machine.machine_peak(*target, args.clock, args.tiny) for target in plan.targets]
    for peak in peaks:
        say("peak on {device} in {dtype}: matmul {matmul:.0f}, conv {conv:.0f} GFLOP/s".format_map(peak))
    implementations.make_model(plan.configs, folder)
    say(f"{args.clock} time, {plan.repeats} repeats: {EXPLANATION}")
    say(line(HEADER))
    say(line(("---",) * len(HEADER)))
    rates = {(peak["device"], peak["dtype"]): peak["conv"] for peak in peaks}
    setup = Setup(plan.configs, plan.size, folder, plan.targets, plan.repeats, args.clock, rates, plan.names)
    during = machine.OtherProcesses()
    rows: list[Row] = []
    for name in plan.names:
        for row in MEASURES[name](setup):
            say(line(row.cells()))
            rows.append(row)
    others["during"] = during.cores()
    profiled = [row for row in rows if row.profile]
    if profiled:
        say("\nWhere minisd's time goes: operations with the largest shares in one more call, how often each is called")
    for row in profiled:
        say(f"- {row.what}, {row.dtype}: {', '.join(map(str, row.profile))}")
    say("\n" + machine.note_on_others(others["during"], "during the measurements"))
    settings = {key: each for key, each in vars(args).items() if key not in FILE_OPTIONS}
    return {
        "date": date,
        "settings": settings | {"size": plan.size},
        "machine": described,
        "cores_of_other_processes": others,
        "peaks_gflops": peaks,
        "rows": [row.as_json() for row in rows],
    }


def _plan(args: argparse.Namespace) -> Plan:
    """Check all options, before any work. Raises InputError, OutputError."""
    configs = tiny(FAMILIES[args.family]) if args.tiny else FAMILIES[args.family]
    names = _selected(",".join(ROWS) if args.rows == "all" else args.rows, ROWS, "--rows")
    if configs.is_xl and args.rows != "all" and not {*names}.isdisjoint(NOT_FOR_XL):
        raise InputError(f"--rows is {args.rows!r}, expected none of {','.join(NOT_FOR_XL)} for {args.family}; {ONE}")
    if configs.is_xl:
        names = [name for name in names if name not in NOT_FOR_XL]
    available = [device for device in USUAL_DTYPES if device == "cpu" or torch.cuda.is_available()]
    devices = available if args.device is None else _selected(args.device, available, "--device")
    targets = [
        (torch.device(device), getattr(torch, name))
        for device in devices
        for name in _selected(USUAL_DTYPES[device] if args.dtype is None else args.dtype, DTYPES, "--dtype")
    ]
    size = TINY_SIZE if args.tiny else configs.size
    size = validation.size(size if args.size is None else args.size, "--size", 64, 64)
    repeats = validation.whole_number(args.repeats, "--repeats", 1, 1000)
    threads = torch.get_num_threads() if args.threads is None else args.threads
    validation.whole_number(threads, "--threads", 1, 1024)
    if args.clock == "processor" and threads != 1:
        raise InputError("--clock is 'processor', expected 'wall' for several threads; give --threads 1.")
    for target in (args.json, args.markdown):
        if target is not None:
            check_target(target, args.overwrite)
    return Plan(configs, size, targets, names, repeats, threads)


def _selected(text: str, allowed: Sequence[str], option: str) -> list[str]:
    """The parts of a comma-separated list, in the order of `allowed`. Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(allowed):
        raise InputError(f"{option} is {text!r}, expected one or more of {','.join(allowed)}.")
    return [each for each in allowed if each in parts]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _weights_folder(keep: Path | None, name: str) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="minisd-bench-") as temporary:
            yield Path(temporary)
        return
    try:
        (keep / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{keep} cannot hold the weights ({error.strerror}); name another folder.") from error
    yield keep / name
