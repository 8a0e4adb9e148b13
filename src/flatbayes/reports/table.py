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

    wide = (width or get_terminal_size().columns) >= WIDE
    table = empty_table(results, wide)
    metric_width = min(max(map(len, metrics(results))), 18 if wide else 14)
    label_width = (28 if wide else 26) - max(metric_width, 13)
    table.columns[0].min_width, table.columns[1].max_width = min(label_width, 9), metric_width
    table.columns[1].min_width = metric_width
    for posterior, group in groupby(results["summary"], key=lambda row: row["posterior"]):
        rows = list(group)
        for label, row in zip(stretched(wrapped(posterior, label_width), len(rows)), rows, strict=True):
            word = verdict(row)
            sides = [spread(row, side) if wide else number(row[side]) for side in SIDES]
            judged = (Text(text, STYLES[word]) for text in (difference(row), WORDS[word]))
            table.add_row(Text(label), Text(row["metric"]), *map(Text, sides), *judged)
        table.add_section()
    return table


def empty_table(results: Results, wide: bool) -> "Table":
    """Title, caption and columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    mean = "mean ± sd" if wide else "mean"
    caption = f"{mean} over {counted(len(seeds(results)), 'seed')}; flat − plain, 95 % paired interval"
    if len(flatnesses(results)) > FEW:
        caption += f"\nflat: {', '.join(flatnesses(results))}"
    table = Table(
        title=Text(f"{flat_name(results, 'Flat')} against Plain on {subject(results, 'data')}"),
        caption=Text(caption, "table.caption"),
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
        sides = {side: spread(row, side) for side in SIDES}
        if word in sides:
            sides[word] = f"**{sides[word]}**"
        cells = (
            escaped(row["posterior"]),
            escaped(row["metric"]),
            *sides.values(),
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
