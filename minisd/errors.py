"""What may go wrong, as classes: each is a MinisdError and also the builtin that a caller would expect.

Every message is one sentence: what, got, expected, what to do next. `exit_code` is what the command line returns.
"""


class MinisdError(Exception):
    """Base of everything that minisd and weights_loader raise on purpose."""

    exit_code = 1


class InputError(MinisdError, ValueError):
    """An argument is outside of what is allowed."""

    exit_code = 2


class FileFormatError(MinisdError, ValueError):
    """A file is not what its name or its reader says it is."""

    exit_code = 3


class IntegrityError(MinisdError, OSError):
    """A file is damaged or incomplete."""

    exit_code = 3


class MismatchError(MinisdError, ValueError):
    """A sound file that does not fit the model it is meant for."""

    exit_code = 3


class HubError(MinisdError, OSError):
    """The model hub could not deliver."""

    exit_code = 4


class HubNotFound(HubError):
    """No such repository, revision or file on the hub."""


class HubGated(HubError):
    """The hub wants a login, or accepted terms, first."""


class HubRateLimited(HubError):
    """The hub asks to slow down."""


class HubUnreachable(HubError):
    """The hub did not answer, or what answered was no hub."""


class HubOffline(HubError):
    """Offline, and the file is not in the cache."""


class UnsafeFileError(MinisdError, ValueError):
    """A file that would run code, or point outside of its folder."""

    exit_code = 5


class NumericalError(MinisdError, ArithmeticError):
    """NaN or infinity where a finite number must be; the message names the stage."""

    exit_code = 6


class DeviceError(MinisdError, RuntimeError):
    """No such device on this machine."""

    exit_code = 7


class OutOfMemory(MinisdError, MemoryError):
    """The work does not fit in memory; the message names the remedies."""

    exit_code = 7


class CallbackError(MinisdError, RuntimeError):
    """The caller's callback failed."""

    exit_code = 2


class OutputError(MinisdError, OSError):
    """A result cannot be written where it should go."""

    exit_code = 8


class ResumeError(MinisdError, RuntimeError):
    """A training run cannot continue from what it found."""

    exit_code = 9
