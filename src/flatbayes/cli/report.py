"""`flatbayes report`: the HTML report of a comparison, from the results that are there."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import console
from flatbayes.cli.parsing import new_parser
from flatbayes.reporting import write_report


def make_parser() -> ArgumentParser:
    """Its options."""
    parser = new_parser("report FOLDER", "Write report.html from the results.json of a comparison.")
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    return parser


def run(options: Namespace) -> None:
    """Write the report again."""
    console.print(f"report   {write_report(Path(options.folder))}", highlight=False, soft_wrap=True)
