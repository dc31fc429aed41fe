"""Print what any terminal can show, whatever its encoding."""

import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """One line on a stream, by default standard output; what its encoding lacks is escaped."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
