"""Run the study: `FLATBAYES_DATA=... python -m studies.reference FOLDER [digits energy]`."""

import argparse
from pathlib import Path

import torch

from flatbayes.core.files import write_json
from studies.reference.study import TASKS, run_task


def main() -> None:
    """Run the tasks that are named on the command line, and write their results after every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder of references, runs and results; an interrupted study goes on"
    )
    parser.add_argument("names", nargs="*", help=f"data sets, by default {' '.join(TASKS)}")
    parser.add_argument("--num_seeds", type=int, help="by default those of the task")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or TASKS:
        for results in run_task(name, options.folder / name, options.num_seeds):
            write_json(options.folder / f"reference-{name}.json", results)
            print(f"{name}, {results['num_seeds']} seeds: {options.folder / f'reference-{name}.json'}", flush=True)


if __name__ == "__main__":
    main()
