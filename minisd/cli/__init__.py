"""The command line: `minisd "a prompt"` draws images, `minisd COMMAND` does everything else.

options.py has the options of all commands; the module of a command is imported only when the command runs.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches

from minisd._internal.interruption import INTERRUPTED, EndAtOnce
from minisd._internal.messages import printable
from minisd.cli import options
from minisd.cli.option_names import with_options
from minisd.cli.output import Lines, complain, open_closed_descriptors
from minisd.cli.parser import Parser
from minisd.errors import MinisdError, OutOfMemory, OutputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, or that of the error, which is one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    open_closed_descriptors()
    stdout, stderr = Lines(sys.stdout), Lines(sys.stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = _run(argv)
        except SystemExit:  # of --help
            if stdout.error is None:
                raise
            code = 0
        if stdout.error is None or isinstance(stdout.error, BrokenPipeError):  # no error: its reader has seen enough
            return code
        reason = stdout.error.strerror or stdout.error
        complain(f"minisd: standard output could not be written ({reason}); files that were saved are complete.")
        return code or OutputError.exit_code


def _run(argv: list[str]) -> int:
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

    warnings.showwarning = lambda message, *_, **__: complain(f"note: {named(printable(str(message)))}")
    try:
        args = parser.parse(argv if command is options.generate else argv[1:])
        if meant:
            complain(f"note: {first!r} is a prompt here; did you mean the command `{meant}`?")
        with EndAtOnce():
            module = importlib.import_module(f"minisd.cli.{command.__name__}")
        return module.run(args)
    except MinisdError as error:
        if "--debug" in argv:
            raise
        complain(f"minisd: {named(error)}")
        return error.exit_code
    except KeyboardInterrupt:
        complain(INTERRUPTED)
        return 130
    except (MemoryError, RuntimeError) as error:
        failure = _out_of_memory(error)
        if failure is None or "--debug" in argv:
            raise
        complain(f"minisd: {failure}")
        return failure.exit_code


def _out_of_memory(error: Exception) -> OutOfMemory | None:
    """The one-line error for exhausted memory outside of the stages of the library; None for another error."""
    from minisd._internal.memory import explained  # here, because it imports PyTorch

    return explained(error, "the command")


def _similar_command(first: str) -> str:
    """The command that the first argument resembles, such as `minisd train` for trian; "" for a command itself."""
    if first in options.COMMANDS:
        return ""
    similar = get_close_matches(first, [*options.COMMANDS, "help"], n=1, cutoff=0.75)
    return f"minisd {similar[0]}".replace(" help", " --help") if similar else ""
