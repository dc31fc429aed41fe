"""Translate what the hub client raises into minisd's errors: by class and status, never by the text of a message."""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TypeVar

import huggingface_hub.errors as hf
from huggingface_hub import constants

from minisd.errors import (
    HubError,
    HubGated,
    HubNotFound,
    HubOffline,
    HubRateLimited,
    HubUnreachable,
    InputError,
    IntegrityError,
    MinisdError,
    OutputError,
)
from weights_loader.hub.speed import LEAST_SPEED, TooSlow, least_speed

WAITS = (1.0, 4.0)  # seconds before the second and third attempt
LONGEST_WAIT = 30  # seconds; if a hub asks for more, its error is raised at once
T = TypeVar("T")


def attempt(call: Callable[[], T], repo: str, what: str) -> T:
    """The result of `call`, which requests `what` of `repo` from the hub; repeated after errors that may pass.

    Raises HubError, IntegrityError, OutputError, InputError, or exceptions that `translate` does not know.
    """
    for wait in (*WAITS, None):
        try:
            with _quiet_client(), least_speed():
                return call()
        except Exception as error:
            problem = translate(error, repo, what)
            if problem is None:
                raise
            wait = _retry_after(error) if isinstance(problem, HubRateLimited) and wait is not None else wait
            final = isinstance(error, TooSlow) or not isinstance(problem, HubRateLimited | HubUnreachable)
            if wait is None or wait > LONGEST_WAIT or final:
                raise problem from error
            time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Hide the client's log lines about each of its own attempts; the final error says it once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def translate(error: BaseException, repo: str, what: str) -> MinisdError | None:
    """The minisd error for a failed request of `what` of `repo`; None for an unknown exception."""
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case hf.LocalEntryNotFoundError(__cause__=hf.HfHubHTTPError() | hf.HTTPError() as cause):
            return translate(cause, repo, what)  # the client always names the connection, the cause is more exact
        case hf.LocalEntryNotFoundError(__cause__=None):
            return HubOffline(f"{what} of {repo} is not in {constants.HF_HUB_CACHE}; download it once while online.")
        case hf.GatedRepoError():
            return HubGated(f"{repo} is gated: accept its terms on {page}, then log in with `hf auth login`.")
        case hf.DisabledRepoError():
            return HubNotFound(f"{repo} was disabled on the hub; choose another model.")
        case hf.RevisionNotFoundError():
            return HubNotFound(f"{repo} has no {what}; see {page} for the revisions that it has.")
        case hf.RepositoryNotFoundError():
            return HubNotFound(f"{repo} is missing, private or gated; check the name, or log in with `hf auth login`.")
        case hf.RemoteEntryNotFoundError():
            return HubNotFound(f"{repo} has no {what}; see {page} for the files that it has.")
        case hf.OfflineModeIsEnabled():
            return HubOffline(
                f"{what} of {repo} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download the file."
            )
        case hf.HFValidationError():
            return InputError(f"{repo!r} cannot be a hub id, expected 'owner/name'.")
        case hf.HfHubHTTPError():
            return _from_status(error.response.status_code, error, repo, what)
        case TooSlow():
            return HubUnreachable(
                f"{constants.ENDPOINT} is too slow for {what} of {repo} ({error}, expected {LEAST_SPEED:,} bytes a "
                "second); try again later, or check the network."
            )
        case hf.HTTPError() | hf.FileMetadataError() | hf.LocalEntryNotFoundError() | ConnectionError():
            return HubUnreachable(
                f"{constants.ENDPOINT} gave no valid answer for {what} of {repo} ({type(error).__name__}); "
                "check the network, and HF_ENDPOINT and the proxy variables if they are set."
            )
        case RuntimeError() | hf.XetDownloadError():  # of the transfer library hf_xet
            return HubUnreachable(f"the transfer of {what} of {repo} failed ({type(error).__name__}); try again.")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return OutputError(f"{constants.HF_HUB_CACHE} has no space for {what} of {repo}; make room.")
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST):
            return OutputError(
                f"{constants.HF_HUB_CACHE} cannot be written, so {what} of {repo} cannot be stored; "
                "set HF_HOME to a writable folder."
            )
        case FileNotFoundError():
            return HubUnreachable(f"another process removed the unfinished download of {what} of {repo}; try again.")
        case OSError(errno=None):  # the client's error for a body of the wrong length
            return IntegrityError(f"{what} of {repo} was incomplete and was deleted; try again.")
    return None


def _from_status(status: int, error: hf.HfHubHTTPError, repo: str, what: str) -> HubError:
    """An HTTP status that has no exception class of its own."""
    match status:
        case 401 | 403:
            return HubGated(
                f"the hub refused {what} of {repo} (HTTP {status}); check the name, log in with "
                f"`hf auth login`, and accept the terms on {constants.ENDPOINT}/{repo} if there are any."
            )
        case 404 | 410:
            return HubNotFound(f"{what} of {repo} is not on the hub (HTTP {status}); check the name.")
        case 429:
            return HubRateLimited(
                f"the hub limits the rate of requests (HTTP 429) for {what} of {repo}; wait {_retry_after(error):.0f} "
                "s, or log in with `hf auth login` for a higher limit."
            )
        case _:
            return HubUnreachable(f"the hub failed for {what} of {repo} (HTTP {status}); try again later.")


def _retry_after(error: BaseException) -> float:
    """The seconds that the hub asks to wait."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    value = "" if response is None else response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):  # no date
        return 5.0
