"""The command line: `flatbayes VERB ...`."""

from flatbayes.cli.main import main

__all__ = ["main"]
