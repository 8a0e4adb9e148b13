"""`python -m flatbayes`, the same as `flatbayes`."""

import sys

from flatbayes.cli import main

if __name__ == "__main__":
    sys.exit(main())
