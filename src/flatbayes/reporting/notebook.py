"""The table of a comparison in a notebook."""

from itertools import groupby

from flatbayes.core.display import format_html_table
from flatbayes.experiments.results import ComparisonResult
from flatbayes.reporting.formats import format_number, format_side
from flatbayes.reporting.queries import format_data, format_flatnesses
from flatbayes.reporting.terminal_table import (
    SIDES,
    VERDICT_WORDS,
    format_coverage,
    format_difference,
    format_verdict,
)


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
