"""The options of `minisd exercises`; importing them loads no PyTorch."""

from pathlib import Path

from minisd.cli.parser import Parser, real, whole

ACTIONS = ("list", "start", "check", "hint", "solution", "run", "pack", "grade")


def exercises(parser: Parser) -> None:
    """Write parts of Stable Diffusion yourself, and check them.

    Without an action: the list. "start NAME" writes a file to begin with. "check NAME" says what is wrong and draws an
    image with your function in the pipeline; without a name, it checks all of your files. "hint NAME" gives the next
    hint, "solution NAME --yes" a right function. "run PROMPT" draws with all of your functions that are right.

    For instructors: "pack FOLDER" writes what is handed out, "grade FOLDER" grades what is handed in, a file or a
    folder for each learner, and writes grades.csv, junit.xml and Gradescope's results.json.
    """
    lines = ("", " start|check|hint|solution NAME", ' run "prompt"', " pack|grade FOLDER")
    parser.usage = "\n       ".join(f"%(prog)s{line} [options]" for line in lines)
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "action",
        nargs="?",
        choices=ACTIONS,
        default="list",
        metavar="ACTION",
        help=", ".join(ACTIONS),
    )
    what.add_argument("name", nargs="?", metavar="NAME", help="an exercise, its number, the prompt of run, or a folder")
    what.add_argument("--folder", type=Path, default=Path("mine"), help="of your files")
    what.add_argument("--model", default="sticker", help="pipeline that your functions are put into")
    what.add_argument(
        "--seed", type=whole, metavar="N", help="of the image of run (0 if not given), of the inputs of grade (drawn)"
    )
    what.add_argument("--watch", action="store_true", help="check again whenever a file is saved, until Ctrl-C")
    what.add_argument("--yes", action="store_true", help="show the solution")
    what.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="image of run (default: mine.png), folder of grade (grades)"
    )
    teach = parser.add_argument_group("for instructors")
    teach.add_argument("--exercises", metavar="NAMES", help="a,b,c (pack: the graded tasks; grade: all handed in)")
    teach.add_argument("--answers", type=Path, metavar="FILE", help="your functions, for graded tasks")
    teach.add_argument("--seconds", type=real, default=10.0, metavar="S", help="that grade gives each exercise")
    teach.add_argument("--memory", type=whole, default=1024, metavar="MIB", help="beyond what PyTorch takes")
    teach.add_argument("--jobs", type=whole, metavar="N", help="submissions at a time (default: one for each core)")
    teach.add_argument("--overwrite", action="store_true", help="replace the grades in the folder")
