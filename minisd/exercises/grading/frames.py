"""Messages through a pipe: each is its length and its bytes."""

import struct
from typing import IO

LONGEST = 64 * 2**20  # bytes of a message from a learner's process
_HEAD = struct.Struct(">Q")


def write_frame(stream: IO[bytes] | None, data: bytes) -> None:
    """Send one message. Raises OSError where nobody reads."""
    assert stream is not None
    stream.write(_HEAD.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes] | None, longest: int | None = None) -> bytes | None:
    """The next message; None at the end of the stream, and where the message is not whole or too long."""
    assert stream is not None
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    (length,) = _HEAD.unpack(head)
    if longest is not None and length > longest:
        return None
    data = stream.read(length)
    return data if len(data) == length else None
