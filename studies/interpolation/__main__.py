"""Run the study, or write its results: `python -m studies.interpolation RUNS [--settings ...] [--summary JSON]`."""

import argparse
from pathlib import Path

from studies.interpolation.settings import MAKERS, get_setting
from studies.interpolation.study import run_setting


def main() -> None:
    """Run what is missing; with `--summary`, only write what has finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--settings", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--methods", nargs="+", help="methods to run; by default all")
    options = parser.parse_args()
    for name in options.settings:
        for failure in run_setting(get_setting(name), options.folder / name, options.methods):
            print("failed:", failure, flush=True)


if __name__ == "__main__":
    main()
