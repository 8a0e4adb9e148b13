"""Tables of the summary for the terminal, in Markdown, and for a notebook."""

from io import StringIO
from itertools import groupby
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from flatbayes.core.display import format_html_table
from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult, SummaryRow, Verdict
from flatbayes.reporting.formats import Side, format_interval, format_number, format_side, format_signed, wrap_label
from flatbayes.reporting.queries import (
    MAX_FLATNESSES_IN_TITLE,
    format_conclusion,
    format_data,
    format_flatnesses,
    list_families,
    list_flatnesses,
    list_metrics,
    list_seeds,
    mean_sd,
    select_family,
    select_runs,
)
from flatbayes.reporting.remarks import (
    describe_failed_checks,
    describe_forecast,
    describe_miscalibration,
    describe_radii,
)

if TYPE_CHECKING:  # slow to import
    from rich.table import Table

VERDICT_WORDS: dict[Verdict, str] = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": "–"}
MIN_WIDE_COLUMNS = 100
"""Width of a terminal that holds the whole table; in a narrower one the standard deviations are left out."""
MIN_LABEL_COLUMNS = 9
"""Smallest width of the names of posteriors."""
COLUMN_SEPARATOR = "  "
SIDES: tuple[Side, ...] = ("plain", "flat")
VERDICT_STYLES: dict[Verdict, str] = {"flat": "bold green", "plain": "bold red", "tie": "dim", "unknown": "dim"}


def summary_tables(results: ComparisonResult, width: int | None = None) -> "list[Table]":
    """The table of the usual metrics, and one for each family of others.

    Args:
        results: The results.
        width: Width in characters, as in `summary_table`.

    Examples:
        >>> [table.row_count for table in summary_tables(results, width=100)]
        [10, 2]
    """
    tables = []
    for name in ["", *list_families(results)]:
        table = summary_table(select_family(results, name), width)
        if name:
            table.title = name
        tables.append(table)
    return tables


def summary_table(results: ComparisonResult, width: int | None = None) -> "Table":
    """One row for each posterior and metric; print it with a rich console.

    Green: flat is better by the 95 % paired interval; red: plain is better; dim: the interval contains zero.

    Args:
        results: The results.
        width: Width in characters, at least 80; by default that of the terminal.

    Examples:
        >>> from rich.console import Console
        >>> Console(width=100, quiet=True).print(summary_table(results))
        >>> summary_table(results, width=100).row_count
        12
    """
    from rich.text import Text

    columns = width or get_terminal_size().columns
    wide = columns >= MIN_WIDE_COLUMNS and _label_width(results, columns, True) >= MIN_LABEL_COLUMNS
    table = _new_table(results, wide)
    label_width = max(MIN_LABEL_COLUMNS, _label_width(results, columns, wide))
    table.columns[1].min_width = table.columns[1].max_width = _metric_width(results, wide)
    for posterior, group in groupby(results.rows, key=lambda row: row.posterior):
        rows = list(group)
        for label, row in zip(_spread_lines(wrap_label(posterior, label_width), len(rows)), rows, strict=True):
            style = VERDICT_STYLES[row.verdict]
            verdict = (Text(format_difference(row), style), Text(VERDICT_WORDS[row.verdict], style))
            sides = [
                Text(text, "bold" if side == row.verdict else "")
                for side, text in zip(SIDES, _format_sides(row, wide), strict=True)
            ]
            table.add_row(Text(label), Text(row.metric), *sides, *verdict)
        coverage = format_coverage(results, posterior)
        if coverage is not None:
            table.add_row("", "coverage_95", *map(format_number, coverage), "nominal 0.95", "", style="dim")
        table.add_section()
    return table


def format_verdict(results: ComparisonResult) -> str:
    """The conclusion in plain words, and lines on calibration, failed checks, radii, and a forecast.

    Examples:
        >>> format_verdict(results)[:12]
        'Over 2 seeds'
    """
    lines = [
        format_conclusion(select_family(results)),
        describe_miscalibration(results),
        describe_failed_checks(results),
        describe_radii(results),
        describe_forecast(results),
        *results.notes,
    ]
    return "\n".join(line for line in lines if line)


def format_tables(results: ComparisonResult, width: int = 100) -> str:
    """All tables and the conclusion as plain text."""
    from rich.console import Console

    console = Console(width=width, file=StringIO(), color_system=None, force_jupyter=False)
    for table in summary_tables(results, width):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in f"{text}\n{format_verdict(results)}".splitlines()]
    return "\n".join(lines)


def format_coverage(results: ComparisonResult, posterior: str) -> tuple[float | None, float | None] | None:
    """Mean coverage of the 95 % intervals of a regression, plain and flat; None if it was not measured."""
    if "miscalibration" not in list_metrics(results):
        return None
    plain, flat = (
        mean_sd(run.metrics.get("coverage_95") for run in select_runs(results, posterior, is_flat))[0]
        for is_flat in (False, True)
    )
    return None if plain is None and flat is None else (plain, flat)


def _label_width(results: ComparisonResult, columns: int, wide: bool) -> int:
    """Width that the other columns of the table leave to the names of posteriors."""
    cells = [
        ("Plain", "Flat", "Difference"),
        *((*_format_sides(row, wide), format_difference(row)) for row in results.rows),
    ]
    numbers = sum(max(map(len, column)) for column in zip(*cells, strict=True))
    return columns - _metric_width(results, wide) - numbers - len("Better") - 5 * len(COLUMN_SEPARATOR)


def _metric_width(results: ComparisonResult, wide: bool) -> int:
    """Width of the names of metrics; longer ones are folded."""
    return min(max(map(len, [*list_metrics(results), "Metric"])), 18 if wide else 14)


def _format_sides(row: SummaryRow, wide: bool) -> list[str]:
    """Plain and flat means, with standard deviations in a wide table."""
    if wide:
        return [format_side(row, side) for side in SIDES]
    return [format_number(row.comparison.plain), format_number(row.comparison.flat)]


def _new_table(results: ComparisonResult, wide: bool) -> "Table":
    """An empty table with title, caption and columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    mean = "mean ± sd" if wide else "mean"
    title = f"{format_flatnesses(results, 'Flat')} against Plain on {format_data(results)}"
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


def markdown_table(results: ComparisonResult) -> str:
    """The table of the usual metrics in GitHub's Markdown; the better variant of a significant row is bold.

    Examples:
        >>> markdown_table(results).splitlines()[0]
        '| Posterior | Metric | Plain | Flat | Flat − plain [95 % interval] | Better |'
    """
    lines = [
        "| Posterior | Metric | Plain | Flat | Flat − plain [95 % interval] | Better |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in results.rows:
        means = [f"**{format_side(row, s)}**" if s == row.verdict else format_side(row, s) for s in SIDES]
        labels = (escape_markdown(row.posterior), escape_markdown(row.metric))
        cells = (*labels, *means, format_difference(row), VERDICT_WORDS[row.verdict])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_html(results: ComparisonResult) -> str:
    """One row for each posterior and metric, with the better variant in bold, and the conclusion in words."""
    header = ("Posterior", "Metric", "Plain", "Flat", "Flat − plain [95 %]", "Better")
    rows = []
    for posterior, group in groupby(results.rows, key=lambda row: row.posterior):
        for index, row in enumerate(group):
            sides = [f"**{format_side(row, s)}**" if s == row.verdict else format_side(row, s) for s in SIDES]
            label = "" if index else posterior
            rows.append((label, row.metric, *sides, format_difference(row), VERDICT_WORDS[row.verdict]))
        coverage = format_coverage(results, posterior)
        if coverage is not None:
            rows.append(("", "coverage_95", *map(format_number, coverage), "nominal 0.95", ""))
    caption = f"{format_flatnesses(results, 'Flat')} against Plain on {format_data(results)}"
    return format_html_table(caption, header, rows, format_verdict(results).splitlines(), num_label_columns=2)


def _spread_lines(lines: list[str], num_rows: int) -> list[str]:
    """The lines of a label, one beside each row; the remaining lines go into the last row."""
    padded = [*lines, *[""] * (num_rows - len(lines))]
    return [*padded[: num_rows - 1], "\n".join(padded[num_rows - 1 :])]


def format_difference(row: SummaryRow) -> str:
    """Flat − plain, and its interval where there is one."""
    text = format_signed(row.comparison.difference)
    return f"{text} {format_interval(row)}" if row.comparison.interval else text


def escape_markdown(label: str) -> str:
    """A label as literal text in a Markdown table cell."""
    for mark, literal in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        label = label.replace(mark, literal)
    for mark in "*_`[]":
        label = label.replace(mark, f"\\{mark}")
    return label
