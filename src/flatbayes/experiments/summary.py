"""Summary of a comparison: paired statistics of every posterior, flatness and metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from flatbayes.core.files import JsonValue
from flatbayes.core.spec import short_name
from flatbayes.experiments.calibrated_nll import add_ensemble_equivalents
from flatbayes.experiments.results import ComparisonResult, SummaryRow
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.experiments.run_result import RunResult
from flatbayes.experiments.statistics import adjust_p_values, compare_pairs
from flatbayes.flatness import Plain
from flatbayes.metrics import HIGHER_IS_BETTER, METRIC_FAMILIES

FAMILY_BY_METRIC = {metric: family for family, metrics in METRIC_FAMILIES.items() for metric in metrics}


def summarize_runs(
    runs: Sequence[RunResult],
    baseline: str,
    directions: Mapping[str, bool],
    families: Mapping[str, str] = MappingProxyType({}),
) -> tuple[SummaryRow, ...]:
    """One row for every posterior, flatness and metric that has at least one pair of runs.

    Args:
        runs: Results of the runs, plain and flat.
        baseline: Label of the plain flatness.
        directions: Whether higher is better, by the name of the metric; decides order and choice of metrics.
        families: Name of the table by the name of the metric; the usual metrics have none. p-values are adjusted for
            the number of comparisons in the same table.

    Returns:
        The rows; posteriors and flatnesses in order of appearance, metrics in the order of `directions`.

    Examples:
        >>> rows = summarize_runs(results.runs, baseline="Plain", directions={"nll": False})
        >>> [(row.posterior, row.metric) for row in rows]
        [('MAP', 'nll'), ('SWAG(rank=2)', 'nll')]
    """
    metrics = {(run.posterior, run.flatness, run.seed): run.metrics for run in runs}
    pairs = dict.fromkeys((run.posterior, run.flatness) for run in runs if run.flatness != baseline)
    posteriors = list(dict.fromkeys(run.posterior for run in runs))
    rows = []
    for posterior, flatness in sorted(pairs, key=lambda pair: posteriors.index(pair[0])):
        seeds = [s for p, f, s in metrics if (p, f) == (posterior, flatness) and (p, baseline, s) in metrics]
        for metric, higher_is_better in directions.items():
            values = [
                (metrics[posterior, baseline, seed].get(metric), metrics[posterior, flatness, seed].get(metric))
                for seed in seeds
            ]
            finite = [(a, b) for a, b in values if a is not None and b is not None and math.isfinite(a + b)]
            if finite:
                plain, flat = zip(*finite, strict=True)
                comparison = compare_pairs(plain, flat, higher_is_better=higher_is_better)
                rows.append(SummaryRow(posterior, flatness, metric, families.get(metric, ""), comparison))
    return add_adjusted_p_values(rows)


def add_adjusted_p_values(rows: Sequence[SummaryRow]) -> tuple[SummaryRow, ...]:
    """Rows with p-values adjusted for all comparisons of the same table."""
    adjusted: dict[int, float | None] = {}
    for family in {row.family for row in rows}:
        table = [index for index, row in enumerate(rows) if row.family == family]
        adjusted |= zip(table, adjust_p_values([rows[index].comparison.p_value for index in table]), strict=True)
    return tuple(replace(row, p_holm=adjusted[index]) for index, row in enumerate(rows))


def write_results(
    folder: Path,
    config: Mapping[str, JsonValue],
    runs: Sequence[RunResult],
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ComparisonResult:
    """Summarize runs, write `results.json`, and return its content.

    Args:
        folder: Folder of the file.
        config: The configuration, as plain data.
        runs: Results of the finished runs, plain and flat.
        failures: Names of the failed runs, with the reason.
        notes: Sentences for the reader of the results.

    Examples:
        >>> again = write_results(Path(), {"data": "Digits"}, results.runs)
        >>> len(again.rows) == len(results.rows), ComparisonResult.load(Path()).config["data"]
        (True, 'Digits')
    """
    runs, omissions = add_ensemble_equivalents(runs, short_name(Plain()))
    results = ComparisonResult(
        config=config,
        runs=tuple(runs),
        notes=(*notes, *omissions),
        rows=summarize_runs(runs, short_name(Plain()), HIGHER_IS_BETTER, FAMILY_BY_METRIC),
        failures=tuple(failures),
        environment=describe_environment(config),
    )
    results.save(folder)
    return results
