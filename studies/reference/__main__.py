"""Run the study: `FLATBAYES_DATA=... python -m studies.reference FOLDER [digits energy]`."""

import argparse
from pathlib import Path

from flatbayes.core.files import write_json
from studies.reference.study import TASKS, run_task


def main() -> None:
    """Run the tasks that are named on the command line, with more and more seeds, and write their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder of references, runs and results; an interrupted study goes on"
    )
    parser.add_argument("names", nargs="*", help=f"data sets, by default {' '.join(TASKS)}")
    parser.add_argument("--num_seeds", type=int, default=5)
    options = parser.parse_args()
    for num_seeds in dict.fromkeys((min(2, options.num_seeds), options.num_seeds)):
        for name in options.names or TASKS:
            results = run_task(name, options.folder / name, num_seeds)
            write_json(options.folder / f"reference-{name}.json", results)
            print(f"{name}, {num_seeds} seeds: {options.folder / f'reference-{name}.json'}")


if __name__ == "__main__":
    main()
