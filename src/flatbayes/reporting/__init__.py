"""Reports of a comparison: tables, figures and one HTML page; reads results, never trains."""

from flatbayes.reporting.report import write_report, write_summary_figure
from flatbayes.reporting.terminal_table import markdown_table, summary_table, summary_tables

__all__ = [
    "markdown_table",
    "summary_table",
    "summary_tables",
    "write_report",
    "write_summary_figure",
]
