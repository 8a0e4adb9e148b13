"""The summary as a table for the terminal and for a README."""

from itertools import groupby
from typing import TYPE_CHECKING

from flatbayes.reports.formats import bracket, signed, spread, wrapped
from flatbayes.reports.results import Results, counted, flat_name, interval, seeds, subject, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.table import Table

WORDS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": "–"}
LABEL_WIDTH = 15
STYLES = {"flat": "bold green", "plain": "bold red", "tie": "dim", "unknown": "dim"}


def summary_table(results: Results) -> "Table":
    """One row for each posterior and metric, at most 100 columns wide; print it with a rich console.

    Green: flat is better by the 95 % paired interval; red: plain is; dim: the interval contains zero.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{flat_name(results)} against Plain on {subject(results, 'data')}"),
        caption=f"mean ± sd over {counted(len(seeds(results)), 'seed')}; flat − plain, 95 % paired interval",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("Posterior", no_wrap=True)
    table.add_column("Metric", max_width=13, overflow="fold")
    for name in ("Plain", "Flat", "Difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Better", no_wrap=True)

    for posterior, group in groupby(results["summary"], key=lambda row: row["posterior"]):
        rows = list(group)
        for label, row in zip(stretched(wrapped(posterior, LABEL_WIDTH), len(rows)), rows, strict=True):
            word = verdict(row)
            cells = (label, row["metric"], spread(row["plain"]), spread(row["flat"]))
            table.add_row(*map(Text, cells), *(Text(t, STYLES[word]) for t in (difference(row), WORDS[word])))
        table.add_section()
    return table


def markdown_table(results: Results) -> str:
    """The same table in GitHub's Markdown; the better side of a significant row is bold."""
    lines = [
        "| Posterior | Metric | Plain | Flat | Flat − plain [95 % interval] | Better |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in results["summary"]:
        word = verdict(row)
        sides = {side: spread(row[side]) for side in ("plain", "flat")}
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
