"""The command line: `minisd "a prompt"` draws images, `minisd COMMAND` does everything else.

options.py has the options of all commands; the module of a command is imported only when the command runs.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches

from minisd.cli import options
from minisd.cli.option_names import with_options
from minisd.cli.output import complain
from minisd.cli.parser import Parser
from minisd.errors import MinisdError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, or that of the error, which is one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argv[0] if argv else ""
    command = options.COMMANDS.get(first, options.generate)
    prog = "minisd" if command is options.generate else f"minisd {first}"
    meant = _similar_command(first)
    paragraphs = (command.__doc__ or "").split("\n\n")
    parser = Parser(prog, "\n\n".join(" ".join(each.split()) for each in paragraphs), meant)
    command(parser)
    options.common(parser)

    def named(message: object) -> str:
        return with_options(str(message), parser.option_names, argv)

    warnings.showwarning = lambda message, *_, **__: complain(f"note: {named(message)}")
    try:
        args = parser.parse(argv if command is options.generate else argv[1:])
        if meant:
            complain(f"note: {first!r} is a prompt here; did you mean the command `{meant}`?")
        return importlib.import_module(f"minisd.cli.{command.__name__}").run(args)
    except MinisdError as error:
        if "--debug" in argv:
            raise
        complain(f"minisd: {named(error)}")
        return error.exit_code
    except KeyboardInterrupt:
        complain("minisd: interrupted; nothing was written")
        return 130
    except BrokenPipeError:  # the reader of standard output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _similar_command(first: str) -> str:
    """The command that the first argument resembles, such as `minisd train` for trian; "" for a command itself."""
    if first in options.COMMANDS:
        return ""
    similar = get_close_matches(first, [*options.COMMANDS, "help"], n=1, cutoff=0.75)
    return f"minisd {similar[0]}".replace(" help", " --help") if similar else ""
