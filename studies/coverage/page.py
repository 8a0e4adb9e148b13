"""The page of the study: its tables, written between two marks."""

from collections.abc import Sequence
from pathlib import Path

from studies.coverage.study import CoverageResult
from studies.pages import replace_between

START, END = "<!-- tables, written by python -m studies.coverage -->", "<!-- end of tables -->"


def write_page(path: Path, results: Sequence[CoverageResult]) -> None:
    """Replace the tables of a page."""
    replace_between(path, START, END, render_tables(results))


def render_tables(results: Sequence[CoverageResult]) -> str:
    """A summary, and the mean coverage and size of every data set, posterior and score."""
    below = [row for row in results if row.coverage < row.coverage_range[0]]
    above = [row for row in results if row.coverage > row.coverage_range[1]]
    num_splits = sum(row.num_splits for row in results)
    misses, expected = sum(row.num_below for row in results), sum(row.expected_below for row in results)
    lines = [
        f"{len(results)} combinations of data set, posterior and score: the mean coverage of "
        f"{len(results) - len(below) - len(above)} lies in its 95 % range, of {len(below)} below and of {len(above)} "
        f"above it (expected if all is right and no scores are equal: {0.025 * len(results):.1f} each). Of the "
        f"{num_splits:,} splits, {misses} are below their 95 % range; expected are {expected:.0f}.",
    ]
    if below:
        lines += ["", "Below: " + "; ".join(map(_describe, below)) + "."]
    if above:
        lines += ["", "Above: " + "; ".join(map(_describe, above)) + "."]
    for data in dict.fromkeys(row.data for row in results):
        rows = [row for row in results if row.data == data]
        scores = list(dict.fromkeys(row.score for row in rows))
        first = rows[0]
        low, high = first.coverage_range
        lines += [
            "",
            f"**{data}**: {first.num_calibration} calibration and {first.num_test} test examples; mean coverage "
            f"expected {100 * first.expected:.2f} %, range {100 * low:.2f} to {100 * high:.2f} %; "
            f"splits below their range: expected {first.expected_below:.1f} of {first.num_splits}",
            "",
            "| posterior | " + " | ".join(f"{score}: coverage, size, splits below" for score in scores) + " |",
            "|---|" + "---|" * len(scores),
        ]
        for posterior in dict.fromkeys(row.posterior for row in rows):
            cells = [_format_cell(row) for row in rows if row.posterior == posterior]
            lines.append(f"| {posterior} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _format_cell(row: CoverageResult) -> str:
    return f"{100 * row.coverage:.2f} %, {row.mean_size:.3g}, {row.num_below}"


def _describe(row: CoverageResult) -> str:
    low, high = row.coverage_range
    return (
        f"{row.data}, {row.posterior}, {row.score} {100 * row.coverage:.2f} % (range {100 * low:.2f} to "
        f"{100 * high:.2f} %)"
    )
