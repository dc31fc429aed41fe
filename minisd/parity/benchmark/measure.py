"""Rows of the workloads, timed in this process. The libraries run in turn, so that another load affects all of them."""

import gc
from collections.abc import Iterator

import torch

from minisd._internal import memory
from minisd.parity.benchmark.implementations import IMPLEMENTATIONS, loader
from minisd.parity.benchmark.profile import shares
from minisd.parity.benchmark.rows import Row, Setup, allowed_error, error, name_of
from minisd.parity.benchmark.timing import timed
from minisd.parity.benchmark.workloads import WORKLOADS, Workload, count_flops

CPU = torch.device("cpu")
WARM_UPS = {"cpu": 1, "cuda": 5}
NO_TUNING = ("text_encoder",)  # components for which diffusers documents no other settings


@torch.no_grad()
def rows(name: str, setup: Setup) -> Iterator[Row]:
    """Rows of a workload, one for each device and dtype."""
    workload = WORKLOADS[name]
    check_memory(workload, setup)
    inputs = workload.inputs(setup.configs, setup.size)
    gflop = count_flops(workload, setup.configs, setup.size) / 1e9
    reference = reference_of(workload, setup, inputs)
    for device, dtype in setup.targets:
        gc.collect()
        moved = moved_inputs(workload, inputs, device, dtype)
        loaded = {
            each: loader(each, workload.component)(setup.folder, device, dtype)
            for each in IMPLEMENTATIONS
            if each != "tuned" or workload.component not in NO_TUNING
        }
        times: dict[str, list[float]] = {each: [] for each in loaded}
        errors = {}
        for k in range(WARM_UPS[device.type] + setup.repeats):
            for each, network in loaded.items():
                call = workload.minisd if each == "minisd" else workload.diffusers
                seconds, output = timed(device, setup.clock, call, network, *moved)
                if k >= WARM_UPS[device.type]:
                    times[each].append(seconds)
                errors[each] = error(workload.compared(network, output), reference)
                del output
        profile = shares(workload.minisd, loaded["minisd"], *moved) if device.type == "cpu" else ()
        del loaded, network
        yield Row(
            workload.what,
            device.type,
            name_of(dtype),
            "s",
            times["diffusers"],
            times["minisd"],
            errors["minisd"],
            errors["diffusers"],
            allowed_error(errors["diffusers"], workload.tolerance),
            times.get("tuned"),
            gflop,
            setup.rates.get((device.type, name_of(dtype))),
            profile,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def reference_of(workload: Workload, setup: Setup, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The output of diffusers in float32 on the CPU, with which all others are compared."""
    loaded = loader("diffusers", workload.component)(setup.folder, CPU, torch.float32)
    return workload.compared(loaded, workload.diffusers(loaded, *inputs))


def moved_inputs(
    workload: Workload, inputs: tuple[torch.Tensor, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """The inputs on a device; floating-point ones in a dtype, except for a workload that keeps them in float32."""
    keeps = workload.mixed
    return tuple(x.to(device, dtype if x.is_floating_point() and not keeps else x.dtype) for x in inputs)


def check_memory(workload: Workload, setup: Setup) -> None:
    """Refuse a training step that needs more memory than there is. Raises InputError, OutOfMemory.

    Each implementation holds weights, gradients and two moments in float32; the reference is a gradient.
    """
    if workload.component == "training":
        size = sum(file.stat().st_size for file in (setup.folder / "unet").glob("*.safetensors"))
        memory.check((4 * len(IMPLEMENTATIONS) + 1) * size, "the row of the training step")
