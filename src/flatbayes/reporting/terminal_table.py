"""The summary as a table for the terminal and for a README."""

from itertools import groupby
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from flatbayes.reporting.formats import format_interval, format_number, format_side, format_signed, wrap_label
from flatbayes.reporting.queries import (
    MAX_FLATNESSES_IN_TITLE,
    Results,
    format_count,
    format_flatnesses,
    format_subject,
    get_interval,
    judge_row,
    list_families,
    list_flatnesses,
    list_metrics,
    list_seeds,
    select_family,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.table import Table

VERDICT_WORDS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": "–"}
MIN_WIDE_COLUMNS = 100
"""Columns of a terminal that holds the whole table; a narrower one leaves out the standard deviations."""
MIN_LABEL_COLUMNS = 9
"""Columns for the names of posteriors at least."""
COLUMN_SEPARATOR = "  "
"""What is between two columns."""
SIDES = ("plain", "flat")
VERDICT_STYLES = {"flat": "bold green", "plain": "bold red", "tie": "dim", "unknown": "dim"}


def summary_tables(results: Results, width: int | None = None) -> "list[Table]":
    """That of the usual metrics, and one for each family of others.

    Args:
        results: The content of `results.json`.
        width: Columns to fit into, as in `summary_table`.
    """
    tables = []
    for name in ["", *list_families(results)]:
        found = summary_table(select_family(results, name), width)
        if name:
            found.title = name
        tables.append(found)
    return tables


def summary_table(results: Results, width: int | None = None) -> "Table":
    """One row for each posterior and metric; print it with a rich console.

    Green: flat is better by the 95 % paired interval; red: plain is; dim: the interval contains zero.

    Args:
        results: The content of `results.json`.
        width: Columns to fit into, 80 at least; by default those of the terminal.
    """
    from rich.text import Text

    columns = width or get_terminal_size().columns
    wide = columns >= MIN_WIDE_COLUMNS and label_columns(results, columns, True) >= MIN_LABEL_COLUMNS
    table = new_summary_table(results, wide)
    label_width = max(MIN_LABEL_COLUMNS, label_columns(results, columns, wide))
    table.columns[1].min_width = table.columns[1].max_width = metric_columns(results, wide)
    for posterior, group in groupby(results["summary"], key=lambda row: row["posterior"]):
        rows = list(group)
        for label, row in zip(spread_lines(wrap_label(posterior, label_width), len(rows)), rows, strict=True):
            word = judge_row(row)
            judged = (Text(text, VERDICT_STYLES[word]) for text in (format_difference(row), VERDICT_WORDS[word]))
            table.add_row(Text(label), Text(row["metric"]), *map(Text, format_sides(row, wide)), *judged)
        table.add_section()
    return table


def label_columns(results: Results, columns: int, wide: bool) -> int:
    """Columns of the terminal that the other columns of the table leave to the posteriors' names."""
    cells = [
        ("Plain", "Flat", "Difference"),
        *((*format_sides(row, wide), format_difference(row)) for row in results["summary"]),
    ]
    numbers = sum(max(map(len, column)) for column in zip(*cells, strict=True))
    return columns - metric_columns(results, wide) - numbers - len("Better") - 5 * len(COLUMN_SEPARATOR)


def metric_columns(results: Results, wide: bool) -> int:
    """Columns for the names of metrics; longer ones are folded."""
    return min(max(map(len, [*list_metrics(results), "Metric"])), 18 if wide else 14)


def format_sides(row: "Mapping[str, Any]", wide: bool) -> list[str]:
    """Plain and flat, with their deviations where there is room."""
    return [format_side(row, side) if wide else format_number(row[side]) for side in SIDES]


def new_summary_table(results: Results, wide: bool) -> "Table":
    """Title, caption and columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    mean = "mean ± sd" if wide else "mean"
    title = f"{format_flatnesses(results, 'Flat')} against Plain on {format_subject(results, 'data')}"
    if len(list_flatnesses(results)) > MAX_FLATNESSES_IN_TITLE:
        title += f"\nflat: {', '.join(list_flatnesses(results))}"
    table = Table(
        title=Text(title),
        caption=f"{mean} over {format_count(len(list_seeds(results)), 'seed')}; flat − plain, 95 % paired interval",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("Posterior", no_wrap=True)
    table.add_column("Metric", overflow="fold")
    for name in ("Plain", "Flat", "Difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Better", no_wrap=True)
    return table


def markdown_table(results: Results) -> str:
    """The same table in GitHub's Markdown; the better side of a significant row is bold."""
    lines = [
        "| Posterior | Metric | Plain | Flat | Flat − plain [95 % interval] | Better |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in results["summary"]:
        word = judge_row(row)
        values = {side: format_side(row, side) for side in SIDES}
        if word in values:
            values[word] = f"**{values[word]}**"
        cells = (
            escape_markdown(row["posterior"]),
            escape_markdown(row["metric"]),
            *values.values(),
            format_difference(row),
            VERDICT_WORDS[word],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread_lines(lines: list[str], rows: int) -> list[str]:
    """The lines of a label, one beside each row; what is left over goes into the last."""
    padded = [*lines, *[""] * (rows - len(lines))]
    return [*padded[: rows - 1], "\n".join(padded[rows - 1 :])]


def format_difference(row: "Mapping[str, Any]") -> str:
    """Flat − plain, and its interval where there is one."""
    text = format_signed(row.get("difference"))
    return f"{text} {format_interval(row)}" if get_interval(row) else text


def escape_markdown(label: str) -> str:
    """A label as literal text in a Markdown table cell."""
    for mark, literal in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        label = label.replace(mark, literal)
    for mark in "*_`[]":
        label = label.replace(mark, f"\\{mark}")
    return label
