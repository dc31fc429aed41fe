"""`minisd eval`: draw the prompts of several suites, check the images exactly, print and write the rates."""

import argparse
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageDraw

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import check_target, write_json
from minisd.cli import measurements
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.preview import fitting_decoder
from minisd.sticker.evaluation.judging import BATCH, Judged
from minisd.sticker.evaluation.prompt_suites import LARGEST_SEED, SUITES

POINTING_SUITES = ("single", "two")
SHEET_IMAGES = 64  # in eight columns
SHEET_WIDTH = 128  # about, of an image
CAPTION_LINES = 5


def run(args: argparse.Namespace) -> int:
    """Draw and judge the suites, measure what else the options name, print and write the results."""
    count = validation.whole_number(args.count, "--count", 1, 100_000)
    seed = validation.whole_number(args.seed, "--seed", 0, LARGEST_SEED)
    if args.tasks is not None:
        return _measure_tasks(args.tasks, count, seed, args.steps, args.overwrite)
    args.reuse_features = validation.whole_number(args.reuse_features, "--reuse-features", 1, 1000)
    suites = _selected_suites(args.suites)
    if args.edits is not None:
        args.edits = validation.whole_number(args.edits, "--edits", 1, 10_000)
    if args.json is not None:
        check_target(args.json, args.overwrite)
    if args.sheet is not None:
        images.check_target(args.sheet, args.overwrite)
    sd = weights_loader.load(args.model)
    teacher = None if args.teacher is None else _teacher(args.teacher, sd)
    if args.preview_decoder:
        fitting_decoder(sd.preview_decoder, sd.vae)
    clip = weights_loader.load_clip(args.model) if args.clip else None

    setup = measurements.Setup(sd, count, seed, args.steps, args.reuse_features, args.preview_decoder)
    table, judged = measurements.judge_suites(setup, suites)
    steps = sd.defaults.num_inference_steps if args.steps is None else args.steps
    content = {"prompts a suite": count, "seed": seed, "steps": steps, **table}
    if args.reuse_features > 1:
        content["reuse_features"] = args.reuse_features
    if args.preview_decoder and judged:
        drawn = next(iter(judged.values())).prompts[:BATCH]
        content["previews"] = measurements.measure_previews(setup, drawn)
    content["autoencoder"] = measurements.measure_autoencoder(setup)
    content["free attributes"] = measurements.measure_free_attributes(setup)
    if args.pointing:
        content["pointing"] = {suite: measurements.measure_pointing(setup, suite) for suite in POINTING_SUITES}
    if clip is not None:
        content["clip"] = measurements.measure_clip(setup, *clip)
    if args.inversion:
        content["inversion"] = measurements.measure_inversions(setup)
    if args.views:
        content["views"] = measurements.measure_views(setup)
    if args.subject:
        content["subject"] = measurements.measure_subject_contexts(setup)
    if teacher is not None:
        content["student"] = measurements.measure_distilled(setup, teacher)
    if args.edits is not None:
        content["edits"] = measurements.measure_edited_images(setup, args.edits)

    if args.json is not None:
        write_json(content, args.json, args.overwrite)
    if args.sheet is not None:
        images.save(contact_sheet(judged), args.sheet, overwrite=args.overwrite)
    return 0


def _teacher(source: str, student: StableDiffusion) -> StableDiffusion:
    """The teacher of a student. Raises InputError if their UNets differ in more than what reads the guidance scale."""
    teacher = weights_loader.load(source)
    if replace(student.unet.config, guidance_width=None) != replace(teacher.unet.config, guidance_width=None):
        raise InputError(f"--teacher is {source}, whose UNet has other sizes than the student's.")
    if teacher.unet.config.guidance_width is not None:
        raise InputError(f"--teacher is {source}, which has learned guidance; name the model of two calls a step.")
    return teacher


def _measure_tasks(target: Path, count: int, seed: int, steps: int | None, overwrite: bool) -> int:
    """Measure the variants and the adapters of the embedded model, and write the results."""
    check_target(target, overwrite)
    measured = measurements.measure_variants(count, seed, steps)
    measured["adapters"] = measurements.measure_adapters(count, seed)
    write_json({"count": count, "seed": seed} | measured, target, overwrite)
    return 0


def _selected_suites(text: str | None) -> list[str]:
    """The suites of a comma-separated list, in the order of SUITES. Raises InputError."""
    if text is None:
        return list(SUITES)
    parts = {part.strip() for part in text.split(",")}
    if not parts <= set(SUITES):
        raise InputError(f"--suites is {text!r}, expected one or more of {','.join(SUITES)}.")
    return [suite for suite in SUITES if suite in parts]


def contact_sheet(judged: dict[str, Judged]) -> Image.Image:
    """Images of the held-out suites (of all suites where there are none) in turn, each above its prompt.

    A wrong image has a red frame, and the word WRONG before its prompt.
    """
    chosen = [each for name, each in judged.items() if name.startswith("held-out")] or list(judged.values())
    rows = zip_longest(*(zip(each.pictures, each.verdicts, each.prompts, strict=True) for each in chosen))
    cells = [cell for row in rows for cell in row if cell is not None][:SHEET_IMAGES]
    return images.image_grid([_judged_image(image, v.exact, prompt) for image, v, prompt in cells], 8, gap=6)


def _judged_image(image: Image.Image, exact: bool, prompt: str) -> Image.Image:
    scale = max(1, SHEET_WIDTH // image.width)
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    if not exact:
        ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline="red", width=3)
    return images.captioned(image, prompt if exact else f"WRONG: {prompt}", CAPTION_LINES)
