"""`minisd inspect`: print what a model folder or a weight file holds."""

import argparse

import weights_loader
from minisd._internal.messages import LONGEST, printable
from minisd.cli.output import say


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    for line in str(weights_loader.inspect(args.source)).splitlines():
        say(printable(line) if len(line) > LONGEST or not line.isprintable() else line)  # keeps the columns
    return 0
