"""Run `python -m studies.double_well` from the root of a checkout."""

import sys

from studies.double_well.cli import main

if __name__ == "__main__":
    sys.exit(main())
