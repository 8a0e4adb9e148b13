"""Run `python -m reproduction` from the root of a checkout."""

import sys

from reproduction.cli import main

if __name__ == "__main__":
    sys.exit(main())
