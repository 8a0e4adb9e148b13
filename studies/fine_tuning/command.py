"""Command of a study of fine-tuning: run its settings, or write its summary and page."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from flatbayes.core.files import read_json, write_json
from studies.fine_tuning.labels import Labels
from studies.fine_tuning.page import write_page


class NamedSetting(Protocol):
    """A setting of a study."""

    @property
    def name(self) -> str:
        """Name of its folder."""


S = TypeVar("S", bound=NamedSetting)


def run_command(
    description: str | None,
    settings: Sequence[S],
    estimate_minutes: Callable[[S], float],
    run_settings: Callable[[Sequence[S], Path], None],
    summarize: Callable[[Path, Mapping[str, Any] | None], Mapping[str, Any]],
    labels: Labels,
    arguments: list[str] | None,
) -> None:
    """Run the study, or write its page.

    Args:
        description: Text of the help.
        settings: All settings in the order of the study.
        estimate_minutes: CPU minutes of a setting.
        run_settings: Trains what has no file in a folder yet.
        summarize: Summary of the files of a folder, and of settings of an earlier summary, as plain data.
        labels: Names on the page.
        arguments: Arguments of the command; None for those of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    names = [setting.name for setting in settings]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="by default all, in this order")
    text = "write a summary to this JSON file, whose settings with more trainings are kept, and train nothing"
    parser.add_argument("--summary", type=Path, help=text)
    parser.add_argument("--page", type=Path, help="fill the tables of this page, and train nothing")
    options = parser.parse_args(arguments)
    if options.summary is not None or options.page is not None:
        earlier = read_json(options.summary) if options.summary is not None and options.summary.is_file() else None
        summary = summarize(options.folder, earlier)
        if options.summary is not None:
            write_json(options.summary, summary)
        if options.page is not None:
            write_page(options.page, summary, labels)
        return
    torch.set_num_threads(1)
    selected = [setting for setting in settings if setting.name in options.settings]
    for setting in selected:
        print(f"{setting.name}: about {estimate_minutes(setting):.1f} CPU minutes", flush=True)
    run_settings(selected, options.folder)
