"""Measure how well a model draws what prompts of Sticker World ask for, by the exact checker; and its autoencoder."""

import argparse
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import check_target, write_json
from minisd.cli.parser import Parser, whole
from minisd.errors import InputError, OutputError
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation import (
    free_attributes,
    judge_prompts,
    measure_task,
    pointing,
    rates,
    readme_pictures,
    reconstruction,
    round_trip,
)
from minisd.sticker.evaluation.adapters import at_night, composed
from minisd.sticker.evaluation.best_of_n import best_of
from minisd.sticker.evaluation.frechet import distances
from minisd.sticker.evaluation.metrics import GATE, Judged, Rate, Reconstruction
from minisd.sticker.evaluation.prompt_suites import LARGEST_SEED, SUITES, examples
from minisd.sticker.evaluation.tasks import Figures
from minisd.sticker.training.dataset import UNSEEN
from minisd.sticker.training.retrieval import hard_negative_accuracy, retrieval
from minisd.tokenizer import Tokenizer
from weights_loader.sources import EMBEDDED, EMBEDDED_VARIANTS

FIGURES = ("convergence", "guidance_sweep", "sampler_comparison", "negative_prompts")
POINTING = ("single", "two")  # the suites whose nouns are looked up in heat maps
SHEET = 64  # pictures, in eight columns
SCENES = 1000  # among which CLIP finds the right one
CHOSEN, OF = ("count", "held-out template"), 4  # suites in which CLIP chooses one of so many pictures
SETS = 5  # times the count are the pictures of which distances between sets are taken


def add_arguments(parser: Parser) -> None:
    """The options of `minisd eval`."""
    parser.add_argument("--model", default="sticker", help="name, folder or file")
    parser.add_argument("--count", type=whole, default=96, help="prompts of each suite")
    parser.add_argument("--seed", type=whole, default=0, help="of the first picture; also chooses the prompts")
    parser.add_argument("--steps", type=whole, help="denoising steps (default: the model's)")
    parser.add_argument("--suites", metavar="A,B", help=f"some of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rates there")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write pictures of the held-out suites")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help=f"also measure and plot {', '.join(FIGURES)}")
    parser.add_argument(
        "--pointing", action="store_true", help="also measure whether heat maps of nouns hit the things"
    )
    parser.add_argument("--clip", action="store_true", help="also measure its CLIP, and pictures as CLIP sees them")
    parser.add_argument("--inversion", action="store_true", help="also measure DDIM inversion, there and back")
    parser.add_argument("--tasks", metavar="JSON", type=Path, help="measure instead variants and adapters of sticker")
    parser.add_argument("--pictures", metavar="FOLDER", type=Path, help="draw instead the README's pictures of sticker")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(args: argparse.Namespace) -> int:
    """Draw, judge, print a rate with its 95 % interval for each skill that a suite asks for."""
    count = validation.whole_number(args.count, "count", 1, 100_000)
    seed = validation.whole_number(args.seed, "seed", 0, LARGEST_SEED)
    if args.pictures is not None:
        return _draw_pictures(args.pictures, args.overwrite)
    if args.tasks is not None:
        return _measure_tasks(args.tasks, count, seed, args.steps, args.overwrite)
    names = _chosen(args.suites)
    _check_targets(args)
    sd = weights_loader.load(args.model)
    clip = weights_loader.load_clip(args.model) if args.clip else None

    table: dict[str, Any] = {}
    judged: dict[str, Judged] = {}
    for name in names:
        prompts = [example.prompt for example in examples(name, count, seed, sd.defaults.words)]
        if not prompts:
            print(f"{name:17} left out: the model was not taught the words")
            continue
        judged[name] = judge_prompts(sd, prompts, seed, args.steps, label=name)
        table[name] = {k: rate.as_json() for k, rate in rates(prompts, judged[name].verdicts).items()}
        for skill, rate in table[name].items():
            print(f"{name:17} {skill:10} {_share(rate)}", flush=True)
    quality = reconstruction(sd.vae, count, seed)
    print(_describe(quality))
    freedom = free_attributes(sd, count, seed, args.steps, label="free attributes")
    for prompt, free in freedom.items():
        parts = [f"{k} {each['distance']:.3f} ({each['chance']:.3f} by chance)" for k, each in free.items()]
        print(f'free in "{prompt}": {", ".join(parts)}')
    heat = {name: _point(sd, name, count, seed, args.steps) for name in POINTING} if args.pointing else {}

    looked = {} if clip is None else _look(sd, *clip, count, seed, args.steps)

    inverted = {}
    for refine in (0, 2) if args.inversion else ():
        back = round_trip(sd, count, seed, refine=refine, label=f"inversion, refine {refine}")
        inverted[f"refine {refine}"] = back._asdict()
        print(
            f"inversion, 50 steps, guidance 1, refine {refine}: {back.mean_psnr:.1f} dB mean, {back.worst_psnr:.1f} "
            f"in the worst; the autoencoder alone {back.autoencoder_psnr:.1f}",
            flush=True,
        )

    if args.json is not None:
        autoencoder = quality._asdict() | {"exact": quality.exact.as_json()}
        steps = sd.defaults.num_inference_steps if args.steps is None else args.steps
        content = {"prompts a suite": count, "seed": seed, "steps": steps}
        content |= table | {"autoencoder": autoencoder, "free attributes": freedom}
        more = {"pointing": heat, "clip": looked, "inversion": inverted}
        content |= {name: each for name, each in more.items() if each}
        write_json(content, args.json, args.overwrite)
    if args.sheet is not None:
        images.save(contact_sheet(judged), args.sheet, overwrite=args.overwrite)
    if args.figures is not None:
        _write_figures(sd, args.figures, count, seed, args.steps, args.overwrite)
    return 0


def _draw_pictures(folder: Path, overwrite: bool) -> int:
    """What the README shows of the embedded model."""
    for name, picture in readme_pictures.draw().items():
        print(images.save(picture, folder / name, overwrite=overwrite))
    return 0


def _measure_tasks(target: Path, count: int, seed: int, steps: int | None, overwrite: bool) -> int:
    """Each variant of the embedded model at its task, and its adapters, printed and written."""
    check_target(target, overwrite)
    figures: dict[str, Figures] = {}
    for name in EMBEDDED_VARIANTS:
        figures[name] = measure_task(weights_loader.load(name), count, seed, steps, label=name)
        for what, value in figures[name].items():
            print(f"{name:20} {what:27} {_share(value) if isinstance(value, dict) else f'{value:.2f}'}", flush=True)
    figures["adapters"] = _measure_adapters(count, seed)
    write_json({"count": count, "seed": seed} | figures, target, overwrite)
    return 0


def _measure_adapters(count: int, seed: int) -> Figures:
    """The word and the LoRA of the embedded model, with and without each, printed."""
    sd, folder = weights_loader.load(EMBEDDED), weights_loader.resolve(EMBEDDED) / "adapters"
    found = {"pink star": composed(sd, count, seed, "pink star", "pink star")}
    found["not at night"] = at_night(sd, count, seed, "without LoRA")
    weights_loader.load_embedding(sd, folder / "candy.safetensors")
    found["<candy>"] = composed(sd, count, seed, "<candy>", "<candy>")
    weights_loader.load_lora(sd, folder / "night.safetensors")
    found["at night"] = at_night(sd, count, seed, "night")
    rates = {name: rate.as_json() for name, rate in found.items()}
    for name, rate in rates.items():
        print(f"{'adapters':20} {name:27} {_share(rate)}", flush=True)
    return rates


def _point(sd: StableDiffusion, name: str, count: int, seed: int, steps: int | None) -> dict[str, float]:
    """The pointing game on a suite, printed; empty where nothing was drawn as asked."""
    prompts = [example.prompt for example in examples(name, count, seed, sd.defaults.words)]
    rate, chance = pointing(sd, prompts, seed, steps, label=f"pointing, {name}")
    if rate.total == 0:
        print(f"{name:17} pointing   nothing was drawn as asked")
        return {}
    print(f"{name:17} pointing   {_share(rate.as_json())} things ({100 * chance:.1f} % by chance)", flush=True)
    return rate.as_json() | {"chance": chance}


def _look(
    sd: StableDiffusion, clip: CLIP, tokenizer: Tokenizer, count: int, seed: int, steps: int | None
) -> dict[str, Any]:
    """What CLIP recognises, and how far pictures are from the world in its eyes, printed."""
    shares = retrieval(clip, tokenizer, SCENES, UNSEEN + seed)
    shares["hard negatives"] = hard_negative_accuracy(clip, tokenizer, SCENES, UNSEEN + seed)
    found = {name: Rate(round(share * SCENES), SCENES).as_json() for name, share in shares.items()}
    for name, rate in found.items():
        print(f"{'clip':17} {name:15} {_share(rate)}")
    far = distances(sd, clip, SETS * count, seed, steps, label="distances")
    for name, each in far.items():
        print(
            f"{'distance':17} {name:15} Frechet {each.frechet:.3f}, MMD {each.mmd:.5f}, {SETS * count} pictures",
            flush=True,
        )
    looked = found | {"distances": {name: each._asdict() for name, each in far.items()}, "pictures": SETS * count}
    for name in CHOSEN:
        prompts = [example.prompt for example in examples(name, max(1, count // 2), seed, sd.defaults.words)]
        if not prompts:
            continue
        choice = best_of(sd, clip, tokenizer, prompts, OF, seed, steps, label=f"best of {OF}, {name}")
        rates_of = {k: getattr(choice, k).as_json() for k in ("first", "chosen", "any")}
        for k, rate in rates_of.items():
            print(f"{name:17} {f'{k} of {OF}':15} {_share(rate)}", flush=True)
        looked[f"best of {OF}, {name}"] = rates_of | {"auc": choice.auc}
    return looked


def _chosen(text: str | None) -> list[str]:
    """The suites of a comma-separated list, in their own order."""
    if text is None:
        return list(SUITES)
    parts = {part.strip() for part in text.split(",")}
    if not parts <= set(SUITES):
        raise InputError(f"--suites is {text!r}, expected one or more of {','.join(SUITES)}.")
    return [name for name in SUITES if name in parts]


def _check_targets(args: argparse.Namespace) -> None:
    if args.json is not None:
        check_target(args.json, args.overwrite)
    if args.sheet is not None:
        images.check_target(args.sheet, args.overwrite)
    if args.figures is not None:
        try:
            args.figures.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{args.figures} cannot hold the figures ({error.strerror}); name a folder.") from error
        for name in FIGURES:
            check_target(args.figures / f"{name}.json", args.overwrite)
            check_target(args.figures / f"{name}.png", args.overwrite)


def _share(rate: dict[str, float]) -> str:
    return f"{100 * rate['rate']:5.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}) of {rate['count']}"


def _describe(quality: Reconstruction) -> str:
    verdict = "passes" if quality.exact.value >= GATE else "misses"
    exact = _share(quality.exact.as_json()).strip()
    return (
        f"autoencoder: {quality.mean_psnr:.1f} dB mean, {quality.worst_percent_psnr:.1f} in the worst 1 %, "
        f"{quality.worst_psnr:.1f} worst; SSIM {quality.mean_ssim:.4f}; exact {exact}, "
        f"{verdict} {100 * GATE:.1f} %"
    )


def contact_sheet(judged: dict[str, Judged]) -> Image.Image:
    """Pictures of the held-out suites, or of those there are, as many of each; what is not exact in a red frame."""
    chosen = [each for name, each in judged.items() if name.startswith("held-out")] or list(judged.values())
    rows = zip_longest(*(zip(each.pictures, each.verdicts, strict=True) for each in chosen))
    pairs = [pair for row in rows for pair in row if pair is not None][:SHEET]
    return images.image_grid([picture if v.exact else _framed(picture) for picture, v in pairs], 8, gap=2)


def _framed(picture: Image.Image) -> Image.Image:
    framed = picture.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, picture.width - 1, picture.height - 1), outline="red", width=2)
    return framed


def _write_figures(
    sd: StableDiffusion, folder: Path, count: int, seed: int, steps: int | None, overwrite: bool
) -> None:
    """Measure and plot the experiments; their data first, so that no plot can lose it."""
    from minisd.parity.sampler_order import convergence, plot_convergence
    from minisd.sticker.evaluation import figures  # here, because it takes matplotlib a second to load

    orders = convergence()
    write_json(orders, folder / "convergence.json", overwrite)
    plot_convergence(orders, folder / "convergence.png", overwrite)
    guidance = figures.guidance_sweep(sd, count, seed, steps, label="guidance")
    write_json(guidance, folder / "guidance_sweep.json", overwrite)
    figures.plot_guidance_sweep(guidance, folder / "guidance_sweep.png", overwrite)
    samplers = figures.sampler_comparison(sd, count, seed, label="samplers")
    write_json(samplers, folder / "sampler_comparison.json", overwrite)
    figures.plot_sampler_comparison(samplers, folder / "sampler_comparison.png", overwrite)
    negative = figures.negative_prompts(sd, count, seed, steps, label="negative prompts")
    write_json(negative, folder / "negative_prompts.json", overwrite)
    figures.plot_negative_prompts(negative, folder / "negative_prompts.png", overwrite)
    print(f"{folder}  the figures, each with its data")
