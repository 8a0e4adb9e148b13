"""Ours beside published figures, for the terminal and as Markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatbayes.reports.formats import NOTHING, number, plus_minus, signed
from flatbayes.reports.results import Results, seeds, unique
from flatbayes.reports.table import escaped

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("Cell", "Metric", "Ours", "Seeds", "Published", "Ours − published", "Source")


def published_table(results: Results) -> "Table":
    """One row for each published figure, and for each metric that has none; print it with a rich console.

    Args:
        results: The content of the `results.json` that `flatbayes paper` writes.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title(results)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 1 < k < 6 else "left", overflow="fold")
    for row in results["published"]:
        table.add_row(*map(Text, cells(row)))
    return table


def published_markdown(results: Results) -> str:
    """The same with all that keeps the two from being compared, where figures are from, hardware and versions."""
    here, config = results["environment"], results["config"]
    lines = [f"# {title(results)}", ""]
    lines += [f"* {remark}" for remark in results["remarks"]]
    lines += [
        "",
        f"Ours: {len(seeds(results))} seed(s), {here['processor']}, {here['cores']} cores, {here['device']}; "
        f"flatbayes {here['flatbayes']}, torch {here['torch']}, Python {here['python']}. "
        f"Settings: {', '.join(f'{k}={v}' for k, v in config.items() if k != 'root' and v is not None)}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(map(escaped, cells(row)))} |" for row in results["published"]]
    sources = results["sources"]
    lines += ["", "Sources; V: read there, M: not checked there.", ""]
    lines += [
        f"* `{key}`: {sources[key]}" for key in sources if key in {row["source"] for row in results["published"]}
    ]
    notes = unique(f"{row['source']}: {row['note']}" for row in results["published"] if row["note"])
    lines += ["", "Notes of single figures:", "", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def title(results: Results) -> str:
    """Which table, and at which scale."""
    config = results["config"]
    return f"{config['table']}, scale {config['scale']}: ours beside published figures"


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a row."""
    from_where = f"{row['source']} [{row['provenance']}]" if row["source"] else NOTHING
    return (
        row["cell"],
        row["metric"],
        plus_minus(row["ours"], row["ours_sd"]),
        str(row["ours_seeds"]),
        plus_minus(row["published"], row["sd"]) if row["published"] is not None else NOTHING,
        signed(row["difference"]) if row["difference"] is not None else number(None),
        from_where,
    )
