"""The log lines of the hub client about its own attempts are hidden."""

import logging

import pytest

from weights_loader.hub.errors import attempt


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
