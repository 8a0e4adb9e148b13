"""Rival methods as published, and ours, with equally many gradients.

    FLATBAYES_DATA=... python -m studies.rivals runs/rivals
    python -m studies.rivals runs/rivals --summary docs/results/rivals.json --page docs/rivals.md

The same command resumes an interrupted run. The summary works at any time, on what has finished.
"""

import argparse
from pathlib import Path

import torch

from flatbayes.core.files import write_json
from studies.rivals.page import update_page
from studies.rivals.study import TASKS, describe_study, run_task


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its results and the tables of its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS], help="by default all")
    parser.add_argument("--summary", type=Path, help="write the results of what has finished to this file, and stop")
    parser.add_argument("--page", type=Path, help="with --summary: write the tables into this page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.summary is not None:
        results = describe_study(options.folder)
        write_json(options.summary, results)
        if options.page is not None:
            update_page(options.page, results)
        return
    for name in options.tasks:
        for finished in run_task(name, options.folder / name):
            print(finished, flush=True)


if __name__ == "__main__":
    main()
