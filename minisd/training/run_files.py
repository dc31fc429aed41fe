"""The file of a training run: its state, what it is a run of, and beside it the state before.

A run continues only what it is a run of. A damaged file is set aside, and the state before it is used.
"""

import hashlib
import json
import math
import os
import shutil
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minisd._internal.atomic_files import write_atomically
from minisd.errors import ResumeError

Part = nn.Module | torch.optim.Optimizer | torch.amp.GradScaler
HASHED_AT_ONCE = 2**24  # numbers
OPTIMIZER_STATE = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter in AdamW


class _Damaged(Exception):
    """A file that is not the whole state of a run; the message says why."""


def fingerprint(*things: nn.Module | Tensor | str) -> str:
    """A short hash that tells networks, tensors and texts apart; of a network, of 64 numbers of each weight."""
    digest = hashlib.sha256()
    for thing in things:
        if isinstance(thing, str):
            digest.update(f"{len(thing)} {thing}".encode())
            continue
        tensors = thing.state_dict() if isinstance(thing, nn.Module) else {"": thing}
        for name, tensor in tensors.items():
            numbers = tensor.detach().reshape(-1)
            if isinstance(thing, nn.Module):
                numbers = numbers[:: max(1, len(numbers) // 64)]
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            for part in numbers.split(HASHED_AT_ONCE):
                digest.update(part.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_run(path: Path, parts: Mapping[str, Part], step: int, elapsed: float, about: Mapping[str, object]) -> None:
    """Replace the file of a run, and keep the one before as `path`.previous. Raises OutputError."""
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    state |= {"step": step, "elapsed": elapsed, "about": json.dumps(about)}

    def keep(file: object) -> None:
        _previous(path).unlink(missing_ok=True)
        if path.exists():
            try:
                os.link(path, _previous(path))
            except OSError:  # a file system without hard links
                shutil.copyfile(path, _previous(path))

    write_atomically(path, lambda file: torch.save(state, file), overwrite=True, check=keep)


def read_run(path: Path, parts: Mapping[str, Part], about: Mapping[str, object] | None, all_of_it: bool = True) -> Any:
    """Load the newest intact state of a run into objects, by name; returns the whole state, None if there is no file.

    about: what the run must be a run of; None: anything. all_of_it: whether the run may be nothing more than that.
    A damaged file is renamed to `path`.damaged, with a warning, if the state before it is intact. Without a file at
    `path` the state before is not used: who removes a run begins a new one.

    Raises ResumeError: the files are damaged, or of a run of another model, or of something else, which is listed.
    """
    problems: dict[Path, _Damaged] = {}
    for candidate in (path, _previous(path)):
        if not os.path.exists(path) or not os.path.exists(candidate):
            continue
        try:
            state = _read(candidate)
            if about is not None:
                _compare(path, state, about, all_of_it)
            _load(path, state, parts)
        except _Damaged as error:
            problems[candidate] = error
            continue
        if path in problems:
            damaged = path.with_name(f"{path.name}.damaged")
            os.replace(path, damaged)
            warnings.warn(
                f"{path} is damaged ({problems[path]}) and was renamed to {damaged.name}; the state before it, of step "
                f"{state['step']}, takes its place.",
                stacklevel=3,
            )
            os.replace(candidate, path)
        return state
    if problems:
        which = "and there is no state before it" if len(problems) == 1 else "and so is the state before it"
        raise ResumeError(
            f"{path} is no run, or damaged ({next(iter(problems.values()))}), {which}; remove it to train from the "
            "beginning, or name another folder."
        )
    return None


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _read(path: Path) -> dict[str, Any]:
    """The checked state in a file. Nothing in it is executed."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise _Damaged("it is not a regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _Damaged("it is compressed")
            if archive.testzip() is not None:  # torch.load does not compare the checksums
                raise _Damaged("a checksum is wrong")
        state = torch.load(path, weights_only=True, map_location="cpu")
    except _Damaged:
        raise
    except PermissionError as error:
        raise ResumeError(f"{path} cannot be read ({error.strerror}); change its permissions.") from error
    except Exception as error:  # torch, pickle and zipfile raise a dozen classes
        raise _Damaged("it cannot be read as a file of torch.save that holds weights alone") from error
    _check(state)
    return state


def _check(state: Any) -> None:
    """Raise _Damaged unless every part of a state has its kind."""
    if not isinstance(state, dict):
        raise _Damaged(f"it holds a {type(state).__name__}")
    kinds: dict[str, type] = {"model": dict, "average": dict, "optimizer": dict, "step": int, "elapsed": float}
    for name, kind in kinds.items():
        if type(state.get(name)) is not kind and not (kind is dict and isinstance(state.get(name), dict)):
            raise _Damaged(f"its {name} is {type(state.get(name)).__name__}, expected {kind.__name__}")
    if state["step"] < 0 or not 0 <= state["elapsed"] < math.inf:
        raise _Damaged(f"it is at step {state['step']} after {state['elapsed']:g} seconds")
    for name in ("model", "average"):
        for key, value in state[name].items():
            if not isinstance(key, str) or not isinstance(value, Tensor) or value.is_complex():
                raise _Damaged(f"its {name} holds more than weights")
    try:
        if not isinstance(json.loads(state.get("about", "{}")), dict):
            raise TypeError
    except (TypeError, ValueError, RecursionError):
        raise _Damaged("it does not say what it is a run of") from None


def _compare(path: Path, state: Mapping[str, Any], about: Mapping[str, object], all_of_it: bool) -> None:
    """Raise ResumeError with all differences between what a run is of, and what it should be of."""
    if "about" not in state:
        warnings.warn(
            f"{path} does not say what it is a run of, because an older minisd wrote it; it is continued as it is.",
            stacklevel=4,
        )
        return
    was, now = json.loads(state["about"]), json.loads(json.dumps(about))
    names = [*now, *(was if all_of_it else ())]
    differences = [
        f"{name} is {now.get(name)!r}, was {was.get(name)!r}"
        for name in dict.fromkeys(names)
        if now.get(name) != was.get(name)
    ]
    if differences:
        raise ResumeError(
            f"{path} is a run of something else: {'; '.join(differences)[:1000]}; name another folder, or remove it."
        )


def _load(path: Path, state: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Load a checked state into objects. Raises ResumeError for another model, _Damaged for what is not AdamW's."""
    for name, part in parts.items():
        stored: Any = state.get(name)
        if isinstance(part, torch.amp.GradScaler):
            stored = part.state_dict() | _scale(stored)
        elif isinstance(part, nn.Module):
            found = {key: tuple(tensor.shape) for key, tensor in stored.items()}
            expected = {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
            for key in (*expected, *found):
                if found.get(key) != expected.get(key):
                    raise ResumeError(
                        f"{path} is a run of another model: its {key[:100]} is {found.get(key, 'missing')}, expected "
                        f"{expected.get(key, 'none')}; name another folder, or remove it."
                    )
        else:
            stored = {"state": stored.get("state"), "param_groups": part.state_dict()["param_groups"]}
            _check_optimizer(stored["state"], part.param_groups[0]["params"])
        try:
            part.load_state_dict(stored)
        except Exception as error:  # tensors that are sparse, quantized or of numbers that cannot be converted
            raise _Damaged(f"its {name} cannot be loaded") from error


def _scale(stored: Any) -> dict[str, float]:
    """The scale of a loss in float16, and since when it has been good. Raises _Damaged for anything else."""
    scale, good = (stored.get(key) if isinstance(stored, dict) else None for key in ("scale", "_growth_tracker"))
    if type(scale) is not float or not 0 < scale < math.inf or type(good) is not int or good < 0:
        raise _Damaged("it has no scale of the loss")
    return {"scale": scale, "_growth_tracker": good}


def _check_optimizer(stored: Any, parameters: list[Tensor]) -> None:
    """Raise _Damaged unless each entry belongs to a parameter; one without gradients has none."""
    entries = stored.items() if isinstance(stored, dict) else [(None, None)]
    for i, entry in entries:
        if type(i) is not int or not 0 <= i < len(parameters) or not isinstance(entry, dict):
            raise _Damaged("its optimizer has other parameters")
        shapes = {key: tuple(value.shape) for key, value in entry.items() if isinstance(value, Tensor)}
        shape = tuple(parameters[i].shape)
        if shapes != dict.fromkeys(OPTIMIZER_STATE, shape) | {"step": ()}:
            raise _Damaged("its optimizer has other parameters")
