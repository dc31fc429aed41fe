"""The log lines of the hub client about its own attempts are hidden; how long a hub asks to wait."""

import logging
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from weights_loader.hub.errors import _retry_after, attempt


def test_attempts_of_the_client_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It logs several lines for each attempt. Its level is restored, so that other programs still get its log."""
    client, top = logging.getLogger("huggingface_hub.utils._http"), logging.getLogger("huggingface_hub")
    before = top.level

    def call() -> int:
        client.warning("Retrying in 8s [Retry 5/5].")
        return 7

    assert attempt(call, "owner/name", "anything") == 7
    assert caplog.text == ""
    assert top.level == before


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("soon", 5), ("", 5), (formatdate(0, usegmt=True), 0)])
def test_how_long_to_wait_in_seconds_or_as_a_date(value: str, seconds: float) -> None:
    error = ConnectionError()
    error.response = SimpleNamespace(headers={"Retry-After": value})  # type: ignore[attr-defined]
    assert _retry_after(error) == seconds
    error.response.headers["Retry-After"] = formatdate(time.time() + 5000, usegmt=True)  # type: ignore[attr-defined]
    assert 4990 < _retry_after(error) <= 5000
