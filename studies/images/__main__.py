r"""Flat against plain fine-tuning of EfficientNet-Lite0 on 20 to 200 images of a class of CIFAR-10.

    FLATBAYES_DATA=... python -m studies.images runs/images
    python -m studies.images runs/images --summary docs/results/images.json \
        --page docs/fine-tuning-images.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

from collections.abc import Sequence
from pathlib import Path

from studies.fine_tuning.command import run_command
from studies.images.study import SETTINGS, Setting, estimate_minutes, run_setting
from studies.images.summary import LABELS, summarize_study


def run_settings(settings: Sequence[Setting], folder: Path) -> None:
    """Train what has no file yet."""
    for setting in settings:
        run_setting(setting, folder)


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    run_command(__doc__, SETTINGS, estimate_minutes, run_settings, summarize_study, LABELS, arguments)


if __name__ == "__main__":
    main()
