"""Check official weights (SD 1.x, 2.x, XL) against the numbers known of them; exit code 0 if none fails."""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

import torch

import weights_loader
from minisd._internal.atomic_files import check_target, write_json
from minisd.cli.parser import Parser
from minisd.parity.verification import FACTS, MODELS, Result, Subject, known_picture, verify
from weights_loader import detect

FAILED = 1
NAMES = {  # what hub ids, known names and official files end in
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


def add_arguments(parser: Parser) -> None:
    """The options of `minisd verify`."""
    parser.add_argument("model", help="name, hub id, folder or file")
    parser.add_argument(
        "--as", dest="known_as", choices=list(NAMES), help="which model it is, if its name does not say"
    )
    parser.add_argument("--quick", action="store_true", help="only what needs no denoising")
    parser.add_argument("--golden", type=Path, metavar="PNG", help="ddsat_c9_1.png, the otter, to compare with")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="ddsat_c15_0.png, to go through the autoencoder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a new file")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--variant", help="which weight files of a folder or repository, such as fp16")
    parser.add_argument("--tokenizer", type=Path, help="for a single file: the folder of its vocabulary")
    parser.add_argument("--offline", action="store_true", default=None, help="never connect; use the hub's cache")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Load in float32, print a line a check as it is made, then the verdict."""
    if args.json is not None:
        check_target(args.json)
    golden = None if args.golden is None else known_picture(args.golden, "golden")
    picture = None if args.picture is None else known_picture(args.picture, "picture")
    torch.backends.cudnn.allow_tf32 = False  # float32 in earnest
    torch.backends.cuda.matmul.allow_tf32 = False
    sd = weights_loader.load(
        args.model,
        device=args.device,
        variant=args.variant,
        tokenizer=args.tokenizer,
        offline=args.offline,
        progress=not args.quiet,
    )
    family = detect.family(sd.unet.config)
    model = args.known_as or model_name(args.model, family)
    subject = Subject(sd, golden, picture, progress=not args.quiet)
    checks = verify(subject, FACTS, family, model, args.quick)
    print(f"{args.model}: {family}, {model or 'which one is not known'}")
    print(row("check", "expected", "got", "difference", "allowed", "verdict"))
    results = []
    for result in checks:
        results.append(result)
        print(result_row(result), flush=True)
    counts = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("pass", "FAIL", "skipped")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if args.json is not None:
        report = {"model": str(args.model), "family": family, "name": model, **counts}
        write_json({**report, "checks": [asdict(result) for result in results]}, args.json)
    return FAILED if counts["FAIL"] else 0


def model_name(source: str, family: str) -> str | None:
    """Which model of a family a source means, by the last part of its name; None if that does not say."""
    last = re.sub(r"\.(safetensors|ckpt)$", "", Path(source).name)
    return next((name for name in MODELS.get(family, ()) if re.fullmatch(NAMES[name], last)), None)


def row(*cells: str) -> str:
    """A line of the table: the name, four numbers to the right, the verdict."""
    name, *numbers, verdict = cells
    return " ".join([f"{name:<52.52}", *(f"{number:>12}" for number in numbers), f" {verdict}"]).rstrip()


def result_row(result: Result) -> str:
    """A check as a line, with expected and got where they differ most."""
    values = (result.expected, result.got, result.difference, result.tolerance)
    numbers = ["" if value is None else f"{value:.6g}" for value in values]
    return row(result.name, *numbers, result.verdict + (f": {result.note}" if result.note else ""))
