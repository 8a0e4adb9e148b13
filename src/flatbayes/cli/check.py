"""Verb `check`: self-checks of a fitted posterior on the data of its run."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from flatbayes.checks import CheckReport
from flatbayes.cli.artifacts import console, load_run
from flatbayes.cli.models import format_run_command
from flatbayes.cli.options import SplitName, add_data_path_option, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.prediction import check_num_draws


def make_parser() -> ArgumentParser:
    """Options of `check`."""
    parser = new_parser(
        "check FOLDER [options]",
        "Check whether the uncertainty of a fitted posterior can be relied on, and say what to try where it cannot. "
        "Nothing is trained or written.",
    )
    add_run_options(parser)
    add_data_path_option(parser)
    parser.add_argument("--split", type=SplitName, default="val", help="split of the data to check on")
    return parser


def run(options: Namespace) -> None:
    """Print the findings of all checks."""
    check_num_draws(options.num_draws)
    folder, fitted, split = load_run(options)
    report = fitted.check(
        split.inputs,
        split.targets,
        options.num_draws,
        batch_size=options.batch_size,
        seed=options.seed,
        show_progress=sys.stderr.isatty(),
        precision=options.precision,
        compiled=options.compiled,
    )
    report = write_for_shell(report, folder.path, fitted.info)
    console.print_text(report.summary())


def write_for_shell(report: CheckReport, folder: Path, info: Mapping[str, Any]) -> CheckReport:
    """A report whose remedies name options and verbs of the command line: `--scale auto` for `scale='auto'`."""
    calibrate = format_run_command("calibrate", folder, info)

    def convert(text: str) -> str:
        text = re.sub(r"\b(?:calibrate|conformalize)\(fitted, validation\)", lambda match: calibrate, text)
        return re.sub(r"(?<![\w.])([a-z_.]+)=('?)([\w.]+)\2", lambda match: f"--{match[1]} {match[3].lower()}", text)

    return replace(
        report,
        findings=tuple(replace(finding, remedy=convert(finding.remedy)) for finding in report.findings),
        skipped={name: convert(reason) for name, reason in report.skipped.items()},
    )


def print_failures(report: CheckReport, folder: Path, info: Mapping[str, Any]) -> None:
    """Print how many checks passed, and a line for each that failed."""
    report = write_for_shell(report, folder, info)
    lines = [f"checks   {report.describe()}", *(f"         {line}" for line in report.format_failures())]
    lines += [f"         {note}" for note in report.notes]
    if report.failed:
        lines.append(f"         all findings: {format_run_command('check', folder, info)}")
    console.print_text("\n".join(lines))
