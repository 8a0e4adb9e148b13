r"""Flat against plain fine-tuning of MiniLM on 100 to 2,000 sentences of SST-2.

    FLATBAYES_DATA=... python -m studies.sentences runs/sentences
    python -m studies.sentences runs/sentences --summary docs/results/sentences.json \
        --page docs/fine-tuning-sentences.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

import argparse
from pathlib import Path

import torch

from flatbayes.core.files import write_json
from studies.fine_tuning.page import write_page
from studies.sentences.page import LABELS
from studies.sentences.study import SETTINGS, estimate_minutes, run_setting
from studies.sentences.summary import summarize_study
from studies.sentences.task import load_task


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="by default all, in this order")
    parser.add_argument("--summary", type=Path, help="write a summary to this JSON file, and train nothing")
    parser.add_argument("--page", type=Path, help="fill the tables of this page, and train nothing")
    options = parser.parse_args(arguments)
    if options.summary is not None or options.page is not None:
        summary = summarize_study(options.folder)
        if options.summary is not None:
            write_json(options.summary, summary)
        if options.page is not None:
            write_page(options.page, summary, LABELS)
        return
    torch.set_num_threads(1)
    settings = [setting for setting in SETTINGS if setting.name in options.settings]
    for setting in settings:
        print(f"{setting.name}: about {estimate_minutes(setting):.0f} CPU minutes", flush=True)
    task = load_task()
    for setting in settings:
        run_setting(task, setting, options.folder)


if __name__ == "__main__":
    main()
