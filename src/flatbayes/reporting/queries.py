"""Queries on the results of a comparison: labels, verdicts, runs of a variant, and the conclusion in one sentence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeGuard, TypeVar

from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult, SummaryRow, Verdict
from flatbayes.experiments.run_result import RunResult
from flatbayes.experiments.statistics import MIN_VERDICT_SEEDS

MAX_FLATNESSES_IN_TITLE = 2
"""Largest number of flatnesses named in a title."""

SIGNIFICANCE_LEVEL = 0.05
"""Adjusted p-value below which a verdict stands."""

T = TypeVar("T")


@dataclass(frozen=True)
class Glossary:
    """Directions and definitions of the metrics."""

    higher_is_better: Mapping[str, bool]
    definitions: Mapping[str, str]

    def direction(self, metric: str) -> str:
        """An arrow and words, empty for a metric of unknown direction."""
        if metric not in self.higher_is_better:
            return ""
        return "↑ higher is better" if self.higher_is_better[metric] else "↓ lower is better"


def default_glossary(metrics: Sequence[str] = ()) -> Glossary:
    """The directions and definitions of `flatbayes.metrics`."""
    from flatbayes.metrics import HIGHER_IS_BETTER
    from flatbayes.metrics.definitions import select_definitions

    return Glossary(HIGHER_IS_BETTER, select_definitions(metrics))


def read_results(folder: Path) -> ComparisonResult:
    """Read the results of a comparison.

    Raises:
        FileNotFoundError: The folder has no `results.json`.
        ValueError: The file is damaged, or not the result of a comparison.
    """
    path = folder / "results.json"
    remedy = f"run `flatbayes compare --out {folder}`"
    if not path.is_file():
        raise FileNotFoundError(f"A report needs {path}, which does not exist; {remedy} to make it.")
    try:
        results = ComparisonResult.load(folder)
        for name, entries in (("runs", results.runs), ("summary", results.rows)):
            if not entries:
                raise ValueError(f"'{name}' should be a list with at least one entry")
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or not the result of a comparison ({error}); {remedy}.") from error
    return results


def is_finite_number(value: float | None) -> TypeGuard[float]:
    """Whether this is a number with a place on an axis."""
    return value is not None and math.isfinite(value)


def unique_values(values: Iterable[T]) -> list[T]:
    """The values in order of first appearance."""
    return list(dict.fromkeys(values))


def list_posteriors(results: ComparisonResult) -> list[str]:
    """Labels of the posteriors, in order of appearance."""
    return unique_values(row.posterior for row in results.rows)


def list_families(results: ComparisonResult) -> list[str]:
    """Names of the tables beside the usual metrics, in order of appearance."""
    return [name for name in unique_values(row.family for row in results.rows) if name]


def select_family(results: ComparisonResult, name: str = "") -> ComparisonResult:
    """The same results with the summary of one table, by default that of the usual metrics."""
    return replace(results, rows=tuple(row for row in results.rows if row.family == name))


def list_metrics(results: ComparisonResult) -> list[str]:
    """Names of the metrics, in order of appearance."""
    return unique_values(row.metric for row in results.rows)


def list_seeds(results: ComparisonResult) -> list[int]:
    """The seeds in ascending order."""
    return sorted({run.seed for run in results.runs})


def format_data(results: ComparisonResult) -> str:
    """Labels of the data, joined by commas where runs differ."""
    return ", ".join(unique_values(run.data for run in results.runs if run.data))


def format_model(results: ComparisonResult) -> str:
    """Labels of the networks, joined by commas where runs differ."""
    return ", ".join(unique_values(run.model for run in results.runs if run.model))


def is_flat(run: RunResult) -> bool:
    """Whether this run was trained with a flatness other than `Plain`."""
    return run.flatness.split("(")[0] != "Plain"


def list_flatnesses(results: ComparisonResult, posterior: str | None = None) -> list[str]:
    """Labels of the flatnesses that are compared with `Plain`, of all posteriors or of one."""
    return unique_values(run.flatness for run in results.runs if posterior in (None, run.posterior) and is_flat(run))


def format_flatnesses(results: ComparisonResult, fallback: str = "flat") -> str:
    """Labels of the flatnesses if there are one or two, else the fallback."""
    names = list_flatnesses(results)
    return ", ".join(names) if 0 < len(names) <= MAX_FLATNESSES_IN_TITLE else fallback


def format_title(results: ComparisonResult) -> str:
    """Title of the comparison."""
    return f"{format_flatnesses(results, 'Flat')} against plain training"


def select_runs(results: ComparisonResult, posterior: str, flat: bool) -> list[RunResult]:
    """The flat or the plain runs of one posterior, by seed."""
    runs = [run for run in results.runs if run.posterior == posterior and is_flat(run) == flat]
    return sorted(runs, key=lambda run: run.seed)


def find_row(results: ComparisonResult, posterior: str, metric: str) -> SummaryRow | None:
    """The summary of one posterior and metric, None where it was not computed."""
    return next((row for row in results.rows if row.posterior == posterior and row.metric == metric), None)


def count_verdicts(rows: Iterable[SummaryRow]) -> dict[Verdict, int]:
    """Number of rows with each verdict."""
    counts: dict[Verdict, int] = {"flat": 0, "plain": 0, "tie": 0, "unknown": 0}
    for row in rows:
        counts[row.verdict] += 1
    return counts


def mean_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the finite values, None where there are too few."""
    finite = [value for value in values if is_finite_number(value)]
    return (fmean(finite) if finite else None), (stdev(finite) if len(finite) > 1 else None)


def format_conclusion(results: ComparisonResult) -> str:
    """One sentence with the number of metrics that flatness improved and worsened."""
    counts, total = count_verdicts(results.rows), len(results.rows)
    metrics, posteriors = len(list_metrics(results)), len(list_posteriors(results))
    grid = f"{format_count(metrics, 'metric')} × {format_count(posteriors, 'posterior')}"
    flat = format_flatnesses(results, "flat training")
    where = f"Over {format_count(len(list_seeds(results)), 'seed')} on {format_data(results) or 'this data'}"
    if counts["unknown"] == total:
        return (
            f"{where}, {flat} was compared with plain training on "
            f"{format_count(total, 'metric')} ({grid}), but no difference has an interval; "
            f"a verdict needs at least {MIN_VERDICT_SEEDS} seeds and differences that are not all equal."
        )
    p_values = [row.p_holm for row in results.rows if row.verdict in ("flat", "plain")]
    adjusted = [p for p in p_values if is_finite_number(p)]
    num_robust = sum(p < SIGNIFICANCE_LEVEL for p in adjusted)
    sentence = (
        f"{where}, {flat} improved {counts['flat']} of "
        f"{format_count(total, 'metric')} ({grid}), worsened {counts['plain']}, "
        f"and {format_count(counts['tie'], 'difference is', 'differences are')} within noise "
        "(95 % paired intervals)"
    )
    if adjusted:
        sentence += f"; corrected for {format_count(total, 'comparison')} (Holm), {num_robust} of these verdicts"
        sentence += " still stands" if num_robust == 1 else " still stand"
    return sentence + (f"; {counts['unknown']} could not be judged." if counts["unknown"] else ".")
