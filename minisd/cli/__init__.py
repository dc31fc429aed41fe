"""The command line: `minisd "a prompt"`, and `minisd COMMAND` for everything else; one module a command."""

import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches

from minisd.cli import bench, convert, evaluate, generate, inspect, train, verify
from minisd.cli.console import say
from minisd.cli.parser import Parser
from minisd.errors import MinisdError

COMMANDS = {
    "inspect": inspect,
    "convert": convert,
    "verify": verify,
    "bench": bench,
    "train": train,
    "eval": evaluate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or the error's own, with one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(argv[0]) if argv else None
    meant = [] if command or not argv else get_close_matches(argv[0], COMMANDS, n=1)
    parser = Parser(
        prog=f"minisd {argv[0]}" if command else "minisd",
        description=(command or generate).__doc__,
        hint=f" (did you mean `minisd {meant[0]}`?)" if meant else "",
    )
    if command is None:
        parser.epilog = f"Other commands: {', '.join(f'minisd {name} --help' for name in COMMANDS)}."
    (command or generate).add_arguments(parser)
    debug = "--debug" in argv
    warnings.showwarning = _show_warning
    try:
        args = parser.parse_args([each for each in (argv[1:] if command else argv) if each != "--debug"])
        return (command or generate).run(args)
    except MinisdError as error:
        if debug:
            raise
        _complain(f"minisd: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("minisd: interrupted; nothing was written")
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _complain(f"note: {message}")


def _complain(text: str) -> None:
    """On standard error, in one line."""
    say(" ".join(text.split()), sys.stderr)
