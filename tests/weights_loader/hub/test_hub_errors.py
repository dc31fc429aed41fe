"""What is told of the hub client's own tries: nothing; the end is told, once."""

import logging

import pytest

from weights_loader.hub.errors import attempt


def test_the_clients_own_tries_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """It logs several lines a try. Its level is as before afterwards, so other programs still hear it."""
    client, top = logging.getLogger("huggingface_hub.utils._http"), logging.getLogger("huggingface_hub")
    before = top.level

    def call() -> int:
        client.warning("Retrying in 8s [Retry 5/5].")
        return 7

    assert attempt(call, "owner/name", "anything") == 7
    assert caplog.text == ""
    assert top.level == before
