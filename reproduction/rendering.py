"""Ours beside published figures, for the terminal and as Markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatbayes.reporting.formats import MISSING, format_mean_sd, format_number, format_signed
from flatbayes.reporting.queries import unique_values
from flatbayes.reporting.terminal_table import escape_markdown

if TYPE_CHECKING:
    from rich.table import Table

COLUMN_NAMES = ("Cell", "Metric", "Ours", "Seeds", "Published", "Ours − published", "Source")


def make_comparison_table(results: Mapping[str, Any]) -> "Table":
    """One row for each published figure, and for each metric that has none; print it with a rich console.

    Args:
        results: The content of the `results.json` that `flatbayes paper` writes.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(format_table_title(results)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, name in enumerate(COLUMN_NAMES):
        table.add_column(name, justify="right" if 1 < k < 6 else "left", overflow="fold")
    for row in results["published"]:
        table.add_row(*map(Text, format_published_row(row)))
    return table


def render_comparison_markdown(results: Mapping[str, Any]) -> str:
    """The same with all that keeps the two from being compared, where figures are from, hardware and versions."""
    here, config = results["environment"], results["config"]
    lines = [f"# {format_table_title(results)}", ""]
    lines += [f"* {remark}" for remark in results["remarks"]]
    lines += [
        "",
        f"Ours: {len({run['seed'] for run in results['runs']})} seed(s), {here['processor']}, {here['cores']} cores, {here['device']}; "
        f"flatbayes {here['flatbayes']}, torch {here['torch']}, Python {here['python']}. "
        f"Settings: {', '.join(f'{k}={v}' for k, v in config.items() if k != 'data_root' and v is not None)}.",
        "",
        f"| {' | '.join(COLUMN_NAMES)} |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(map(escape_markdown, format_published_row(row)))} |" for row in results["published"]]
    sources = results["references"]
    lines += ["", "Sources; V: read there, M: not checked there.", ""]
    lines += [
        f"* `{key}`: {sources[key]}" for key in sources if key in {row["reference"] for row in results["published"]}
    ]
    notes = unique_values(f"{row['reference']}: {row['note']}" for row in results["published"] if row["note"])
    lines += ["", "Notes of single figures:", "", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def format_table_title(results: Mapping[str, Any]) -> str:
    """Which table, and at which scale."""
    config = results["config"]
    return f"{config['table']}, scale {config['scale']}: ours beside published figures"


def format_published_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a row."""
    from_where = f"{row['reference']} [{row['provenance']}]" if row["reference"] else MISSING
    return (
        row["cell"],
        row["metric"],
        format_mean_sd(row["ours"], row["ours_std"]),
        str(row["ours_num_seeds"]),
        format_mean_sd(row["published"], row["std"]) if row["published"] is not None else MISSING,
        format_signed(row["difference"]) if row["difference"] is not None else format_number(None),
        from_where,
    )
