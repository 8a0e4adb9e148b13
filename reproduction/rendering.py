"""Comparison table of our and published results, for the terminal and as Markdown."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from flatbayes.reporting.formats import MISSING, format_mean_sd, format_number, format_signed
from flatbayes.reporting.queries import unique_values
from flatbayes.reporting.terminal_table import escape_markdown
from reproduction.report import ComparisonRow

COLUMN_NAMES = ("Cell", "Metric", "Ours", "Seeds", "Published", "Ours − published", "Source")


def make_comparison_table(results: Mapping[str, Any]) -> Table:
    """Comparison table for a rich console.

    Args:
        results: Content of the `results.json` that `python -m reproduction` writes.
    """
    table = Table(title=Text(format_table_title(results)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, name in enumerate(COLUMN_NAMES):
        table.add_column(name, justify="right" if 1 < k < 6 else "left", overflow="fold")
    for row in results["published"]:
        table.add_row(*map(Text, format_row(ComparisonRow(**row))))
    return table


def render_comparison_markdown(results: Mapping[str, Any]) -> str:
    """Comparison table in Markdown, with limitations, references, hardware and versions.

    Args:
        results: Content of the `results.json` that `python -m reproduction` writes.
    """
    environment, config = results["environment"], results["config"]
    rows = [ComparisonRow(**row) for row in results["published"]]
    lines = [f"# {format_table_title(results)}", ""]
    lines += [f"* {remark}" for remark in results["remarks"]]
    lines += [
        "",
        f"Ours: {len({run['seed'] for run in results['runs']})} seed(s), {environment['processor']}, "
        f"{environment['cores']} cores, "
        f"{environment['device']}; "
        f"flatbayes {environment['flatbayes']}, torch {environment['torch']}, Python {environment['python']}. "
        f"Settings: {', '.join(f'{k}={v}' for k, v in config.items() if k != 'data_root' and v is not None)}.",
        "",
        f"| {' | '.join(COLUMN_NAMES)} |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(map(escape_markdown, format_row(row)))} |" for row in rows]
    lines += ["", "References; V: read in the reference, M: unverified.", ""]
    cited = {row.reference for row in rows}
    lines += [f"* `{key}`: {description}" for key, description in results["references"].items() if key in cited]
    notes = unique_values(f"{row.reference}: {row.note}" for row in rows if row.note)
    lines += ["", "Notes on single figures:", "", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def format_table_title(results: Mapping[str, Any]) -> str:
    """Title with table and scale."""
    config = results["config"]
    return f"{config['table']}, scale {config['scale']}: ours beside published figures"


def format_row(row: ComparisonRow) -> tuple[str, ...]:
    """Cells of a row, in the order of `COLUMN_NAMES`."""
    return (
        row.cell,
        row.metric,
        format_mean_sd(row.ours, row.ours_std),
        str(row.ours_num_seeds),
        format_mean_sd(row.published, row.std) if row.published is not None else MISSING,
        format_signed(row.difference) if row.difference is not None else format_number(None),
        f"{row.reference} [{row.provenance}]" if row.reference else MISSING,
    )
