"""The options of `minisd exercises`; importing them loads no PyTorch."""

from pathlib import Path

from minisd.cli.parser import Parser, whole

ACTIONS = ("list", "start", "check", "hint", "solution", "run")


def exercises(parser: Parser) -> None:
    """Write parts of Stable Diffusion yourself, and check them.

    "start NAME" writes a file to begin with. "check NAME" says what is wrong and draws an image with your function in
    the pipeline. "run PROMPT" draws with all of your functions that are right.
    """
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "action",
        nargs="?",
        choices=ACTIONS,
        default="list",
        metavar="ACTION",
        help=", ".join(ACTIONS),
    )
    what.add_argument("name", nargs="?", metavar="NAME", help="an exercise, its number, or the prompt of run")
    what.add_argument("--folder", type=Path, default=Path("mine"), help="of your files")
    what.add_argument("--model", default="sticker", help="pipeline that your functions are put into")
    what.add_argument("--seed", type=whole, default=0, metavar="N", help="of the image of run")
    what.add_argument("--yes", action="store_true", help="show the solution")
    what.add_argument("-o", "--output", type=Path, metavar="FILE", help="image of run (default: mine.png)")
