"""The summary as a table for the terminal and for a README."""

from itertools import groupby
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from flatbayes.reports.formats import bracket, number, signed, spread, wrapped
from flatbayes.reports.results import (
    FEW,
    Results,
    counted,
    families,
    flat_name,
    flatnesses,
    interval,
    metrics,
    of_family,
    seeds,
    subject,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.table import Table

WORDS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": "–"}
WIDE = 100
"""Columns of a terminal that holds the whole table; a narrower one leaves out the standard deviations."""
NARROWEST = 9
"""Columns for the names of posteriors at least."""
BETWEEN = "  "
"""What is between two columns."""
SIDES = ("plain", "flat")
STYLES = {"flat": "bold green", "plain": "bold red", "tie": "dim", "unknown": "dim"}


def summary_tables(results: Results, width: int | None = None) -> "list[Table]":
    """That of the usual metrics, and one for each family of others.

    Args:
        results: The content of `results.json`.
        width: Columns to fit into, as in `summary_table`.
    """
    tables = []
    for name in ["", *families(results)]:
        found = summary_table(of_family(results, name), width)
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
    wide = columns >= WIDE and label_room(results, columns, True) >= NARROWEST
    table = empty_table(results, wide)
    label_width = max(NARROWEST, label_room(results, columns, wide))
    table.columns[1].min_width = table.columns[1].max_width = metric_width(results, wide)
    for posterior, group in groupby(results["summary"], key=lambda row: row["posterior"]):
        rows = list(group)
        for label, row in zip(stretched(wrapped(posterior, label_width), len(rows)), rows, strict=True):
            word = verdict(row)
            judged = (Text(text, STYLES[word]) for text in (difference(row), WORDS[word]))
            table.add_row(Text(label), Text(row["metric"]), *map(Text, sides(row, wide)), *judged)
        table.add_section()
    return table


def label_room(results: Results, columns: int, wide: bool) -> int:
    """Columns of the terminal that the other columns of the table leave to the posteriors' names."""
    cells = [("Plain", "Flat", "Difference"), *((*sides(row, wide), difference(row)) for row in results["summary"])]
    numbers = sum(max(map(len, column)) for column in zip(*cells, strict=True))
    return columns - metric_width(results, wide) - numbers - len("Better") - 5 * len(BETWEEN)


def metric_width(results: Results, wide: bool) -> int:
    """Columns for the names of metrics; longer ones are folded."""
    return min(max(map(len, [*metrics(results), "Metric"])), 18 if wide else 14)


def sides(row: "Mapping[str, Any]", wide: bool) -> list[str]:
    """Plain and flat, with their deviations where there is room."""
    return [spread(row, side) if wide else number(row[side]) for side in SIDES]


def empty_table(results: Results, wide: bool) -> "Table":
    """Title, caption and columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    mean = "mean ± sd" if wide else "mean"
    title = f"{flat_name(results, 'Flat')} against Plain on {subject(results, 'data')}"
    if len(flatnesses(results)) > FEW:
        title += f"\nflat: {', '.join(flatnesses(results))}"
    table = Table(
        title=Text(title),
        caption=f"{mean} over {counted(len(seeds(results)), 'seed')}; flat − plain, 95 % paired interval",
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
        word = verdict(row)
        values = {side: spread(row, side) for side in SIDES}
        if word in values:
            values[word] = f"**{values[word]}**"
        cells = (
            escaped(row["posterior"]),
            escaped(row["metric"]),
            *values.values(),
            difference(row),
            WORDS[word],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stretched(lines: list[str], rows: int) -> list[str]:
    """The lines of a label, one beside each row; what is left over goes into the last."""
    padded = [*lines, *[""] * (rows - len(lines))]
    return [*padded[: rows - 1], "\n".join(padded[rows - 1 :])]


def difference(row: "Mapping[str, Any]") -> str:
    """Flat − plain, and its interval where there is one."""
    text = signed(row.get("difference"))
    return f"{text} {bracket(row)}" if interval(row) else text


def escaped(label: str) -> str:
    """A label as literal text in a Markdown table cell."""
    for mark, literal in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        label = label.replace(mark, literal)
    for mark in "*_`[]":
        label = label.replace(mark, f"\\{mark}")
    return label
