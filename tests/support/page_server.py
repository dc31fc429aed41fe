"""A running server of the page."""

from typing import NamedTuple


class Server(NamedTuple):
    """A running `minisd app`: its address, and its process."""

    address: str
    process: int
