"""Show what is in a model folder or weight file: layout, family, components, dtypes, surprises."""

import argparse

import weights_loader
from minisd.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The options of `minisd inspect`."""
    parser.add_argument("source", help="file, folder, known name or cached hub id")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    print(weights_loader.inspect(args.source))
    return 0
