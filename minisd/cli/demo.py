"""`minisd demo NAME`: print what a demo says, and save its images on one sheet."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd.cli.inputs import read_image, read_prompt
from minisd.cli.option_names import option_of
from minisd.cli.output import save_image, say
from minisd.demos import DEMOS, draw_sheet, find
from minisd.demos.catalogue import Entry
from minisd.errors import InputError

PROMPTS = ("prompt", "negative_prompt")
IMAGES = ("image", "mask_image", "depth_map")
NO_SETTINGS = {"name", "model", "device", "output", "overwrite", "debug"}


def run(args: argparse.Namespace) -> int:
    """List the demos, or check the settings of one, show it and save its sheet."""
    if args.name is None:
        return _list()
    entry = find(args.name)
    settings = _read_settings(entry, args)
    target = args.output or images.free_name(Path(), entry.name)
    images.check_target(target, args.overwrite)
    device = weights_loader.check_device(args.device or weights_loader.best_device())
    began = time.perf_counter()
    model = args.model or entry.model
    shown = entry.show(weights_loader.load(model, device=device) if entry.loads else model, **settings)
    say(f"{shown}\n")
    sheet = draw_sheet(shown)
    about = {"software": "minisd", "demo": entry.name, "model": model, "description": shown.title}
    path = save_image(sheet, target, args.overwrite, about)
    say(f"{path}  {sheet.width} x {sheet.height}, {time.perf_counter() - began:.1f} s with {model}")
    return 0


def _list() -> int:
    width = max(map(len, DEMOS)) + 2
    for entry in DEMOS.values():
        say(f"{entry.name:{width}}{entry.summary}")
    say("show one with `minisd demo NAME`; `minisd demo --help` lists the settings")
    return 0


def _read_settings(entry: Entry, args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked and read. Raises InputError for those that the demo does not have."""
    given = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS and value is not None}
    foreign = [option_of(name) for name in given if name not in entry.settings]
    if foreign:
        own = ", ".join(option_of(name) for name in entry.settings) or "--model alone"
        raise InputError(f"the demo {entry.name} has no {', '.join(foreign)}; it has {own}.")
    checks: dict[str, Callable[[Any], Any]] = {
        "seed": validation.seed,
        "guidance_scale": validation.guidance,
        "num_inference_steps": lambda steps: validation.whole_number(steps, "num_inference_steps", 1, 1000),
        "strength": lambda strength: validation.real_number(strength, "strength", 0, 1),
        **dict.fromkeys(PROMPTS, read_prompt),
        **dict.fromkeys(IMAGES, read_image),
    }
    return {name: checks[name](value) if name in checks else value for name, value in given.items()}
