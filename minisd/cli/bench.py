"""`minisd bench`: measure minisd and diffusers with the same weights in one run, and print a table."""

import argparse
import datetime
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import minisd
from minisd._internal import validation
from minisd._internal.atomic_files import check_target, write_json
from minisd.cli.options import DTYPES, ROWS
from minisd.errors import InputError, NumericalError, OutputError
from minisd.parity.benchmark import implementations, measure
from minisd.parity.benchmark.measure import Row
from minisd.parity.benchmark.workloads import FAMILIES, NETWORKS, WORKLOADS, count_flops, tiny

USUAL_DTYPES = {"cpu": "float32,bfloat16", "cuda": "bfloat16,float16"}
TINY_SIZE = 64


def run(args: argparse.Namespace) -> int:
    """Make random weights, measure, print the table; 6 if a row misses its accuracy gate."""
    rows = _selected(args.rows, ROWS, "--rows")
    available = [device for device in USUAL_DTYPES if device == "cpu" or torch.cuda.is_available()]
    devices = available if args.device is None else _selected(args.device, available, "--device")
    targets = [
        (torch.device(device), getattr(torch, name))
        for device in devices
        for name in _selected(USUAL_DTYPES[device] if args.dtype is None else args.dtype, DTYPES, "--dtype")
    ]
    size = TINY_SIZE if args.tiny else validation.size(args.size, "--size", 64, 64)
    repeats = validation.whole_number(args.repeats, "--repeats", 1, 1000)
    threads = torch.get_num_threads() if args.threads is None else args.threads
    validation.whole_number(threads, "--threads", 1, 1024)
    if args.json is not None:
        check_target(args.json, args.overwrite)
    versions = implementations.require_oracle()
    configs = tiny(FAMILIES[args.family]) if args.tiny else FAMILIES[args.family]
    used = {WORKLOADS[row].component for row in rows if row != "load"}
    components = [each for each in NETWORKS if each in used or "load" in rows]

    results: list[Row] = []
    with _threads(threads), _weights_folder(args.keep, args.family + "-tiny" * args.tiny) as folder:
        machine = _machine(versions)
        print(f"minisd bench: {args.family}{', tiny' * args.tiny}, {size} x {size} pixels")
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        peaks = [measure.machine_peak(*target, args.tiny) for target in targets]
        for peak in peaks:
            print("peak on {device} in {dtype}: matmul {matmul:.0f}, conv {conv:.0f} GFLOP/s".format_map(peak))
        for component in components:
            implementations.make_weights(component, configs, folder)
        print(f"medians of {repeats} (min to max); ratio = diffusers / minisd; accuracy: {measure.GATE}")
        print("of peak: the share of the convolution's rate that minisd reaches\n")
        oracle = "diffusers, channels_last" if args.channels_last else "diffusers"
        print(_line("what", "dtype", oracle, "minisd", "ratio", "of peak", "accuracy"))
        print(_line(*("---",) * 7), flush=True)
        rates = {(peak["device"], peak["dtype"]): peak["conv"] for peak in peaks}
        for name in rows:
            if name == "load":
                measured = measure.measure_loading(components, folder, targets, repeats)
            else:
                workload = WORKLOADS[name]
                inputs, gflop = workload.inputs(configs, size), count_flops(workload, configs, size) / 1e9
                measured = measure.measure_workload(
                    workload, inputs, folder, targets, repeats, args.channels_last, gflop, rates
                )
            for row in measured:
                print(_line(*row.cells()), flush=True)
                results.append(row)

    if args.json is not None:
        settings = {key: each for key, each in vars(args).items() if key not in ("keep", "json", "overwrite")}
        content = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": settings | {"size": size},
            "machine": machine,
            "peaks_gflops": peaks,
            "rows": [row.as_json() for row in results],
        }
        write_json(content, args.json, args.overwrite)
        print(f"\n{args.json}  all measurements")
    missed = sum(not row.passes for row in results)
    if missed:
        print(f"\n{missed} of {len(results)} rows miss the accuracy gate")
    return NumericalError.exit_code if missed else 0


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


def _machine(versions: dict[str, str]) -> dict[str, Any]:
    """The machine, its load, and the versions of the libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "CPU": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "minisd": minisd.__version__,
        "torch": torch.__version__,
        **versions,
    }


def _line(what: str, dtype: str, oracle: str, ours: str, ratio: str, share: str, accuracy: str) -> str:
    return f"| {what:<41} | {dtype:<8} | {oracle:<29} | {ours:<29} | {ratio:>5} | {share:>7} | {accuracy} |"
