"""Run the command line as `python -m minisd` or, in several processes, as `torchrun -m minisd train ...`."""

import sys

from minisd.cli import main

sys.exit(main())
