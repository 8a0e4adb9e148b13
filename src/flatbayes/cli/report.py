"""Verb `report`: HTML report from the results of a comparison."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import console
from flatbayes.cli.parsing import new_parser
from flatbayes.reporting import write_report


def make_parser() -> ArgumentParser:
    """Options of `report`."""
    parser = new_parser("report FOLDER", "Write report.html from the results.json of a comparison.")
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    return parser


def run(options: Namespace) -> None:
    """Write the report, in place of an earlier one."""
    console.print(f"report   {write_report(Path(options.folder))}", highlight=False, soft_wrap=True)
