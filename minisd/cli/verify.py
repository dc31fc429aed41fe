"""`minisd verify`: compare official weights with published numbers, and print a table."""

import argparse
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import weights_loader
from minisd._internal.atomic_files import check_target, write_json
from minisd.parity.verification import FACTS, MODELS, ModelUnderTest, Result, open_reference_image, verify
from weights_loader.sources import EMBEDDED, resolve
from weights_loader.vocabulary import NoVocabulary

FAILED = 1
NAMES = {  # the last part of hub ids, known names and official files
    "v1-1": r"(stable-diffusion|sd)-v1-1",
    "v1-2": r"(stable-diffusion|sd)-v1-2",
    "v1-3": r"(stable-diffusion|sd)-v1-3",
    "v1-4": r"(stable-diffusion|sd)-v1-4|sd14",
    "v1-5": r"stable-diffusion-v1-5|v1-5-pruned(-emaonly)?|sd15",
    "v2-base": r"stable-diffusion-2-base|512-base-ema|sd2-base",
    "v2": r"stable-diffusion-2|768-v-ema|sd2",
    "v2-1-base": r"stable-diffusion-2-1-base|v2-1_512-ema-pruned|sd21-base",
    "v2-1": r"stable-diffusion-2-1|v2-1_768-ema-pruned|sd21",
}


def run(args: argparse.Namespace) -> int:
    """Load in float32, print each check when it is done, then the counts; 1 if a check fails."""
    if args.json is not None:
        check_target(args.json)
    golden = None if args.golden is None else open_reference_image(args.golden, "golden")
    picture = None if args.picture is None else open_reference_image(args.picture, "picture")
    torch.backends.cudnn.allow_tf32 = False  # full float32
    torch.backends.cuda.matmul.allow_tf32 = False
    device = weights_loader.check_device(args.device or weights_loader.best_device())
    load = partial(
        weights_loader.load,
        args.model,
        device=device,
        variant=args.variant,
        offline=args.offline,
        progress=not args.quiet,
    )
    try:
        sd, has_vocabulary = load(tokenizer=args.tokenizer), True
    except NoVocabulary:  # the networks are checked with any other one, which no check reads
        sd, has_vocabulary = load(tokenizer=resolve(EMBEDDED) / "tokenizer"), False
    family = sd.unet.config.family
    model = args.known_as or model_name(args.model, family)
    tested = ModelUnderTest(sd, golden, picture, not args.quiet, has_vocabulary)
    checks = verify(tested, FACTS, family, model, args.quick)
    print(f"{args.model}: {family}, {model or 'unknown model'}")
    print(row("check", "expected", "got", "difference", "allowed", "verdict"))
    results = []
    for result in checks:
        results.append(result)
        print(result_row(result), flush=True)
    counts = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("pass", "FAIL", "skipped")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"on {device}")
    if args.json is not None:
        report = {"model": str(args.model), "family": family, "name": model, **counts}
        write_json({**report, "checks": [asdict(result) for result in results]}, args.json)
    return FAILED if counts["FAIL"] else 0


def model_name(source: str, family: str) -> str | None:
    """The model of the family that the last part of the source names, or None."""
    last = re.sub(r"\.(safetensors|ckpt)$", "", Path(source).name)
    return next((name for name in MODELS.get(family, ()) if re.fullmatch(NAMES[name], last)), None)


def row(*cells: str) -> str:
    """A line of the table: the name, four numbers, the verdict."""
    name, *numbers, verdict = cells
    return " ".join([f"{name:<52.52}", *(f"{number:>12}" for number in numbers), f" {verdict}"]).rstrip()


def result_row(result: Result) -> str:
    """The line of a check, with the expected and the actual value that differ most."""
    values = (result.expected, result.got, result.difference, result.tolerance)
    numbers = ["" if value is None else f"{value:.6g}" for value in values]
    return row(result.name, *numbers, result.verdict + (f": {result.note}" if result.note else ""))
