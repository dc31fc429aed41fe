"""Run the command line: `minisd`, `python -m minisd` or, in several processes, `torchrun -m minisd train ...`."""

import sys

from minisd._internal.interruption import EndAtOnce


def main() -> int:
    """Import the command line and run it; returns the exit code."""
    with EndAtOnce():
        from minisd import cli
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
