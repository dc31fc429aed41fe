"""The options of `minisd eval`; importing them loads no PyTorch, see options.py."""

from pathlib import Path

from minisd.cli.parser import Parser, whole

SUITES = (
    "single", "two", "binding", "position", "size", "background", "count", "partial", "full", "held-out pairs",
    "held-out triples", "held-out counts", "held-out template", "style", "in front", "rephrased",
)  # fmt: skip


def evaluate(parser: Parser) -> None:
    """Measure how often the embedded model draws what prompts describe.

    An exact checker reads the images of several suites of prompts. The autoencoder is measured, too.
    """
    what = parser.add_argument_group("what to measure")
    what.add_argument("--model", default="sticker", help="name, folder or file")
    what.add_argument("--suites", metavar="A,B", help=f"some of {', '.join(SUITES)} (default: all)")
    what.add_argument("--count", type=whole, default=96, metavar="N", help="prompts of each suite")
    what.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the first image and of the prompts")
    what.add_argument("--steps", type=whole, metavar="N", help="denoising steps (default: the model's)")
    what.add_argument(
        "--reuse-features", type=whole, default=1, metavar="N", help="of the suites: of N UNet calls one is whole"
    )
    what.add_argument(
        "--preview-decoder",
        action="store_true",
        help="of the suites: images by the model's small decoder; its PSNR, too",
    )
    more = parser.add_argument_group("also measure")
    more.add_argument("--pointing", action="store_true", help="whether the heat map of a noun is hottest on its object")
    more.add_argument("--clip", action="store_true", help="the model's CLIP, and distances between sets of images")
    more.add_argument("--inversion", action="store_true", help="DDIM inversion, there and back")
    more.add_argument("--views", action="store_true", help="turned images, large images and a loop of one model")
    more.add_argument("--subject", action="store_true", help="a sks shape in 50 contexts, after DreamBooth")
    more.add_argument("--edits", type=whole, metavar="N", help="Imagic on N images, about a minute each")
    more.add_argument("--teacher", metavar="MODEL", help="of a distilled student: compare its predictions and its time")
    instead = parser.add_argument_group("do this instead, with the model sticker")
    instead.add_argument("--tasks", type=Path, metavar="JSON", help="measure its variants and adapters")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="also write the rates")
    output.add_argument("--sheet", type=Path, metavar="PNG", help="also save images of the held-out suites")
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
