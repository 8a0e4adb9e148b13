"""Reports of a comparison: terminal and Markdown tables, figures and one HTML page, made from its results alone."""

from flatbayes.reporting.html import write_report
from flatbayes.reporting.summary_figure import write_summary_figure
from flatbayes.reporting.terminal_table import format_verdict, markdown_table, summary_table, summary_tables

__all__ = [
    "format_verdict",
    "markdown_table",
    "summary_table",
    "summary_tables",
    "write_report",
    "write_summary_figure",
]
