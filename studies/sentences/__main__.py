r"""Flat against plain fine-tuning of MiniLM on 100 to 2,000 sentences of SST-2.

    FLATBAYES_DATA=... python -m studies.sentences runs/sentences
    python -m studies.sentences runs/sentences --summary docs/results/sentences.json \
        --page docs/fine-tuning-sentences.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

from collections.abc import Sequence
from pathlib import Path

from studies.fine_tuning.command import run_command
from studies.sentences.study import SETTINGS, Setting, estimate_minutes, run_setting
from studies.sentences.summary import LABELS, summarize_study
from studies.sentences.task import load_task


def run_settings(settings: Sequence[Setting], folder: Path) -> None:
    """Train what has no file yet."""
    task = load_task()
    for setting in settings:
        run_setting(task, setting, folder)


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    run_command(__doc__, SETTINGS, estimate_minutes, run_settings, summarize_study, LABELS, arguments)


if __name__ == "__main__":
    main()
