"""Reports of a comparison: tables, figures and one HTML page; reads results, never trains."""

from flatbayes.reports.published import published_markdown, published_table
from flatbayes.reports.report import readme_picture, write_report
from flatbayes.reports.table import markdown_table, summary_table, summary_tables

__all__ = [
    "markdown_table",
    "published_markdown",
    "published_table",
    "readme_picture",
    "summary_table",
    "summary_tables",
    "write_report",
]
