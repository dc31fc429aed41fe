"""The errors of minisd: each is a MinisdError and also the builtin class that a caller would expect.

Every message is one sentence: what, got, expected, what to do next. `exit_code` is that of the command line.
"""

from minisd._internal.messages import printable


class MinisdError(Exception):
    """Base of everything that minisd and weights_loader raise on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one printable line of bounded length, whatever file names and prompts it quotes."""
        return printable(super().__str__())


class InputError(MinisdError, ValueError):
    """An argument is not allowed."""

    exit_code = 2


class FileFormatError(MinisdError, ValueError):
    """A file does not have the expected format."""

    exit_code = 3


class IntegrityError(MinisdError, OSError):
    """A file is damaged or incomplete."""

    exit_code = 3


class MismatchError(MinisdError, ValueError):
    """A valid file that does not fit the model."""

    exit_code = 3


class HubError(MinisdError, OSError):
    """The model hub could not provide a file."""

    exit_code = 4


class HubNotFound(HubError):
    """No such repository, revision or file on the hub."""


class HubGated(HubError):
    """The hub requires a login, or accepted terms."""


class HubRateLimited(HubError):
    """The hub received too many requests."""


class HubUnreachable(HubError):
    """The hub did not answer, or the answer is not from a hub."""


class HubOffline(HubError):
    """Offline mode, and the file is not in the cache."""


class UnsafeFileError(MinisdError, ValueError):
    """A file that would run code, or that names a file outside its folder."""

    exit_code = 5


class NumericalError(MinisdError, ArithmeticError):
    """NaN or infinity in a result; the message names the stage."""

    exit_code = 6


class DeviceError(MinisdError, RuntimeError):
    """The device does not exist on this machine."""

    exit_code = 7


class OutOfMemory(MinisdError, MemoryError):
    """The work does not fit in memory; the message names the remedies."""

    exit_code = 7


class CallbackError(MinisdError, RuntimeError):
    """The caller's callback failed."""

    exit_code = 2


class OutputError(MinisdError, OSError):
    """A result cannot be written to its target."""

    exit_code = 8


class ResumeError(MinisdError, RuntimeError):
    """A training run cannot continue from the files in its folder."""

    exit_code = 9
