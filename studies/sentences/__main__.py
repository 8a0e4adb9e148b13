"""Flat against plain fine-tuning of MiniLM on 100 to 2,000 sentences of SST-2.

    FLATBAYES_DATA=... python -m studies.sentences runs/sentences
    python -m studies.sentences runs/sentences --summary docs/results/sentences.json --page docs/fine-tuning-sentences.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

import argparse
from pathlib import Path

import torch

from studies.sentences.study import SETTINGS, run_setting
from studies.sentences.task import load_task


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="by default all, in this order")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = load_task()
    for setting in SETTINGS:
        if setting.name in options.settings:
            run_setting(task, setting, options.folder)


if __name__ == "__main__":
    main()
