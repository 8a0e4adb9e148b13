"""Writes the tables of docs/benchmarks.md from `docs/results/benchmarks.json`: run this file after `make bench`.

The table of a part stands between `<!-- benchmark: PART -->` and `<!-- end of benchmark -->`.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "docs" / "results" / "benchmarks.json"
TABLE = re.compile(r"(<!-- benchmark: (\w+) -->\n)(.*?)(<!-- end of benchmark -->)", re.DOTALL)


def insert_tables(text: str) -> str:
    """The text of the page with the current tables."""
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))["parts"]

    def insert(match: re.Match[str]) -> str:
        start, part, _, end = match.groups()
        return f"{start}\n{render_table(parts[part]['rows'])}\n\nMeasured on {parts[part]['date']}.\n\n{end}"

    return TABLE.sub(insert, text)


def render_table(rows: list[dict[str, Any]]) -> str:
    """A table with one row for each case, and no empty columns."""
    several_groups = len({row["group"] for row in rows}) > 1
    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = cases.setdefault(f"{row['group']}: {row['case']}" if several_groups else row["case"], {})
        if row["threads"] == 1:
            cells |= {"Before": write_number(row.get("before")), "Ratio": write_number(row["ratio"])}
            cells |= {key.title(): write_number(row[key]) for key in ("limit", "target")}
            cells |= {name: write_number(value) for name, value in row["peers"].items()}
        else:
            cells["2 threads"] = write_number(row["ratio"])
    names = {name: None for cells in cases.values() for name, cell in cells.items() if cell}
    order = ["Before", "Ratio", "2 threads", "Limit", "Target"]
    columns = [name for name in order if name in names] + [name for name in names if name not in order]
    lines = [["Case", *columns], ["---"] * (1 + len(columns))]
    lines += [[case, *(cells.get(name, "") for name in columns)] for case, cells in cases.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |")


def write_number(value: float | None) -> str:
    """Three significant digits, at most two decimals; nothing for None."""
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


if __name__ == "__main__":
    PAGE.write_text(insert_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
