r"""Flat against plain fine-tuning of EfficientNet-Lite0 on 20 to 200 images of a class of CIFAR-10.

    FLATBAYES_DATA=... python -m studies.images runs/images
    python -m studies.images runs/images --summary docs/results/images.json \
        --page docs/fine-tuning-images.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

import argparse
from pathlib import Path

import torch

from flatbayes.core.files import write_json
from studies.fine_tuning.page import write_page
from studies.images.study import SETTINGS, estimate_minutes, run_setting
from studies.images.summary import LABELS, summarize_study


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
        print(f"{setting.name}: about {estimate_minutes(setting):.1f} CPU minutes", flush=True)
    for setting in settings:
        run_setting(setting, options.folder)


if __name__ == "__main__":
    main()
