"""`python -m minisd`, where the `minisd` command is not on the path; `torchrun -m minisd train ...`."""

import sys

from minisd.cli import main

sys.exit(main())
