"""Flat against plain fine-tuning of EfficientNet-Lite0 on 20 to 200 images of a class of CIFAR-10.

    FLATBAYES_DATA=... python -m studies.images runs/images
    python -m studies.images runs/images --summary docs/results/images.json --page docs/fine-tuning-images.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

import argparse
from pathlib import Path

import torch

from studies.images.study import SETTINGS, run_setting


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="by default all, in this order")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for setting in SETTINGS:
        if setting.name in options.settings:
            run_setting(setting, options.folder)


if __name__ == "__main__":
    main()
