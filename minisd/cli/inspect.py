"""`minisd inspect`: print what a model folder or a weight file holds."""

import argparse

import weights_loader


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    print(weights_loader.inspect(args.source))
    return 0
