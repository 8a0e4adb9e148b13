"""Verb `report`: HTML report from the results of a comparison."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import console
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import WriteError
from flatbayes.experiments.results import ComparisonResult
from flatbayes.reporting import summary_tables, write_report


def make_parser() -> ArgumentParser:
    """Options of `report`."""
    parser = new_parser("report FOLDER", "Write report.html from the results.json of a comparison.")
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    return parser


def run(options: Namespace) -> None:
    """Write the report, in place of an earlier one; where that is not possible, print its main table.

    Raises:
        WriteError: The report cannot be written, and the table has been printed.
    """
    folder = Path(options.folder)
    try:
        report = write_report(folder)
    except WriteError:
        for table in summary_tables(ComparisonResult.load(folder)):
            console.print(table)
        raise
    console.print_text(f"report   {report}")
