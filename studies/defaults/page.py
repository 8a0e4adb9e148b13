"""Summary of the results as JSON, and the tables of the page."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flatbayes.core.files import read_json, write_json
from flatbayes.experiments.run_folder import describe_environment
from studies.defaults.baselines import LINEAR, NAMES
from studies.pages import fill_marks

TIE, SHORT, FAR = 0.01, 0.05, 0.1
"""Margins of "at", "5 % behind" and "10 % behind"."""
MIN_MARGIN = 0.005
"""Smallest margin of the NLL of classes in nats, for data where all models are nearly certain and right."""
COVERAGE_RANGE = (0.9, 0.98)
HALVES = ("choice", "held-out")
FLAT, PLAIN, FIXED, ESTIMATOR = "SWAG flat", "SWAG plain", "SWAG fixed", "estimator flat"


@dataclass(frozen=True)
class TaskResult:
    """Results of a data set, averaged over its splits.

    Attributes:
        task: Name of the data set.
        half: choice or held-out.
        is_regression: Whether the targets are numbers.
        size: Training rows and columns.
        metrics: Mean metrics by method, of the methods that have a result for every split.
        seconds: Mean seconds by method.
        errors: Error by method.
        num_splits: Number of splits.
    """

    task: str
    half: str
    is_regression: bool
    size: tuple[int, int]
    metrics: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    errors: Mapping[str, str]
    num_splits: int = 1

    def nll(self, method: str) -> float:
        """NLL of a method, infinite if it failed or was not finite."""
        value = self.metrics.get(method, {}).get("nll")
        return float("inf") if value is None else value

    def was_run(self, method: str) -> bool:
        """Whether a method has a result or an error."""
        return method in self.metrics or method in self.errors

    def best_baseline(self) -> str:
        """The baseline with the lowest NLL."""
        return min(NAMES, key=self.nll)

    def is_behind(self, method: str, other: str, share: float) -> bool:
        """Whether a method is behind another by more than a share.

        The share is of the NLL for classes. The NLL of numbers has no zero, so that it is of the density there: 0.01
        nats are a density of each target that is 1 % lower.
        """
        margin = share if self.is_regression else max(share * self.nll(other), MIN_MARGIN)
        return not self.nll(method) <= self.nll(other) + margin


def write_summary(folder: Path, path: Path) -> None:
    """Write the results of all splits in a folder, with machine and versions."""
    jobs = [read_json(file) for file in sorted(folder.glob("*.*.json"))]
    for job in jobs:
        job["records"] = {method: shorten_record(record) for method, record in sorted(job["records"].items())}
    write_json(path, {"environment": describe_environment(), "jobs": jobs})


def restore_results(path: Path, folder: Path) -> None:
    """Write the results of a summary to files from which the benchmark continues; those that exist are kept."""
    for job in read_json(path)["jobs"]:
        file = folder / f"{job['task']}.{job['seed']}.json"
        if not file.exists():
            write_json(file, job)


def shorten_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with rounded numbers."""

    def shorten(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shorten(entry) for key, entry in value.items()}
        return float(f"{value:.5g}") if isinstance(value, float) else value

    shortened: dict[str, Any] = shorten(record)
    return shortened


def load_results(path: Path, num_splits: int | None = None) -> list[TaskResult]:
    """Means over the first or all splits of each data set, from a summary; not all methods are run on all splits."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for job in read_json(path)["jobs"]:
        jobs.setdefault(job["task"], []).append(job)
    return [average_splits(splits[:num_splits]) for splits in jobs.values()]


def average_splits(splits: Sequence[Mapping[str, Any]]) -> TaskResult:
    """Mean metrics over the splits of a data set."""
    first = splits[0]
    methods = {method for split in splits for method in split["records"]}
    metrics, seconds, errors = {}, {}, {}
    for method in sorted(methods):
        records = [split["records"][method] for split in splits if method in split["records"]]
        failures = [record["error"] for record in records if "error" in record]
        if failures:
            errors[method] = failures[0]
        if method in errors or len(records) < len(splits):
            continue
        seconds[method] = fmean(record.get("seconds", 0.0) for record in records)
        metrics[method] = {
            name: fmean(record["metrics"][name] for record in records)
            for name in records[0]["metrics"]
            if all(record["metrics"].get(name) is not None for record in records)
        }
    size = (first["train"], first["columns"])
    is_regression = first["kind"] == "numbers"
    return TaskResult(first["task"], first["half"], is_regression, size, metrics, seconds, errors, len(splits))


@dataclass(frozen=True)
class Goal:
    """A goal of the defaults.

    Attributes:
        text: What is wanted.
        share: Smallest share of the data sets that have to satisfy it.
        applies: Whether it concerns a data set.
        is_met: Whether a data set satisfies it.
    """

    text: str
    share: float
    applies: Callable[[TaskResult], bool]
    is_met: Callable[[TaskResult], bool]

    def find_failures(self, results: Iterable[TaskResult]) -> tuple[list[str], int]:
        """Data sets that do not satisfy it, and the number of data sets that it concerns."""
        concerned = [result for result in results if self.applies(result)]
        return [result.task for result in concerned if not self.is_met(result)], len(concerned)


def list_goals() -> list[Goal]:
    """The goals, for flat SWAG and the default estimator."""
    return [
        *list_model_goals(FLAT, "flat SWAG"),
        *list_model_goals(ESTIMATOR, "the default estimator"),
        *list_plain_goals(FLAT, "flat SWAG"),
        *list_plain_goals(FIXED, "SWAG with rho 0.05"),
    ]


def list_model_goals(method: str, name: str) -> list[Goal]:
    """Goals of a method against the models of scikit-learn, and of its intervals."""
    low, high = COVERAGE_RANGE
    return [
        Goal(
            f"{name} at or ahead of the best baseline in NLL on 70 % of the sets",
            0.7,
            lambda result: result.was_run(method),
            lambda result: not result.is_behind(method, result.best_baseline(), TIE),
        ),
        Goal(
            f"{name} never more than 10 % behind a linear model in NLL",
            1.0,
            lambda result: result.was_run(method),
            lambda result: not result.is_behind(method, LINEAR, FAR),
        ),
        Goal(
            f"95 % intervals of {name} cover 90 to 98 % on every set of numbers",
            1.0,
            lambda result: result.is_regression and result.was_run(method),
            lambda result: low <= result.metrics.get(method, {}).get("coverage_95", 0.0) <= high,
        ),
    ]


def list_plain_goals(method: str, name: str) -> list[Goal]:
    """Goals of a method against plain SWAG."""

    def is_pair(result: TaskResult) -> bool:
        return method in result.metrics and PLAIN in result.metrics

    return [
        Goal(
            f"{name} at or ahead of plain SWAG in NLL on 80 % of the sets",
            0.8,
            is_pair,
            lambda result: not result.is_behind(method, PLAIN, TIE),
        ),
        Goal(
            f"{name} never 5 % behind plain SWAG in NLL",
            1.0,
            is_pair,
            lambda result: not result.is_behind(method, PLAIN, SHORT),
        ),
    ]


def render_goals(results: Sequence[TaskResult], before: Sequence[TaskResult]) -> str:
    """Table of the goals: reached or not on each half, with the data sets that miss them."""
    rows = [["Goal", *(f"{half}{suffix}" for half in HALVES for suffix in (", before", "")), "Misses, held-out half"]]
    for goal in list_goals():
        if not any(map(goal.applies, results)):
            continue
        cells = [goal.text]
        for half in HALVES:
            for group in (before, results):
                failures, number = goal.find_failures(result for result in group if result.half == half)
                is_reached = number and number - len(failures) >= goal.share * number
                cells.append(f"{'✓' if is_reached else '✗'} {number - len(failures)}/{number}" if number else "")
        failures, _ = goal.find_failures(result for result in results if result.half == "held-out")
        rows.append([*cells, ", ".join(failures)])
    return render_table(rows)


def render_nll(results: Sequence[TaskResult], before: Sequence[TaskResult], half: str) -> str:
    """Table of the NLL by data set, of one half."""
    earlier = {result.task: result for result in before}
    header = ["Data set", "Rows × columns", "flat SWAG before", "flat SWAG", "plain SWAG", "rho 0.05", "estimator"]
    rows = [[*header, "best baseline", "linear", "truth", "splits"]]
    for result in filter(lambda result: result.half == half, results):
        best = result.best_baseline()
        flat, estimator = (
            format_nll(result.nll(method)) + (" ✗" if result.is_behind(method, best, TIE) else "")
            if result.was_run(method)
            else ""
            for method in (FLAT, ESTIMATOR)
        )
        old = earlier[result.task].nll(FLAT) if result.task in earlier else float("nan")
        rows.append(
            [
                result.task,
                f"{result.size[0]:,} × {result.size[1]:,}",
                format_nll(old),
                flat,
                format_nll(result.nll(PLAIN)),
                format_nll(result.nll(FIXED)) if FIXED in result.metrics else "",
                estimator,
                f"{format_nll(result.nll(best))} ({best})",
                format_nll(result.nll(LINEAR)),
                format_nll(result.nll("truth")) if "truth" in result.metrics else "",
                str(result.num_splits),
            ]
        )
    if not any(FIXED in result.metrics for result in results):
        rows = [[*row[:5], *row[6:]] for row in rows]
    return render_table(rows)


def render_quality(results: Sequence[TaskResult], half: str) -> str:
    """Table of errors, calibration, disagreement of the networks, and seconds by data set, of one half."""
    header = [
        "Data set",
        "accuracy or RMSE",
        "best baseline's",
        "95 % and 50 % intervals cover, or ECE",
        "estimator's",
    ]
    rows = [[*header, "networks disagree", "estimator's", "seconds"]]
    for result in filter(lambda result: result.half == half, results):
        flat, estimator = (result.metrics.get(method, {}) for method in (FLAT, ESTIMATOR))
        best = result.metrics.get(result.best_baseline(), {})
        error = "rmse" if result.is_regression else "accuracy"
        rows.append(
            [
                result.task,
                *(format_metric(metrics.get(error)) for metrics in (flat, best)),
                *(format_calibration(metrics, is_regression=result.is_regression) for metrics in (flat, estimator)),
                *(format_metric(metrics.get("epistemic")) for metrics in (flat, estimator)),
                format_metric(result.seconds.get(FLAT)),
            ]
        )
    return render_table(rows)


def render_posteriors(results: Sequence[TaskResult], half: str) -> str:
    """Table of all posteriors, estimators and baselines over the data sets of one half, for splits that all have."""
    members = [result for result in results if result.half == half]
    methods = sorted({method for result in members for method in (*result.metrics, *result.errors)} - {"truth"})
    header = ["Method", "data sets", "at or ahead of the best baseline", "10 % behind linear", "median excess NLL"]
    rows = [[*header, "median coverage of 95 %", "median disagreement", "failed", "median seconds"]]
    for method in methods:
        fitted = [result for result in members if method in result.metrics]
        excess = [result.nll(method) - result.nll(result.best_baseline()) for result in fitted]
        rows.append(
            [
                method,
                str(len(fitted)),
                str(sum(not result.is_behind(method, result.best_baseline(), TIE) for result in fitted)),
                str(sum(result.is_behind(method, LINEAR, FAR) for result in fitted)),
                format_metric(median(excess) if excess else None),
                format_median(fitted, method, "coverage_95"),
                format_median(fitted, method, "epistemic"),
                str(sum(method in result.errors for result in members)),
                format_metric(median(result.seconds[method] for result in fitted) if fitted else None),
            ]
        )
    return render_table(rows)


def format_median(results: Sequence[TaskResult], method: str, metric: str) -> str:
    """Median of a metric over data sets that have it."""
    values = [result.metrics[method][metric] for result in results if metric in result.metrics[method]]
    return format_metric(median(values)) if values else ""


def format_calibration(metrics: Mapping[str, float], *, is_regression: bool) -> str:
    """Coverage of intervals, or ECE."""
    if not metrics:
        return ""
    if is_regression:
        return f"{100 * metrics['coverage_95']:.0f} %, {100 * metrics['coverage_50']:.0f} %"
    return f"{metrics['ece']:.3f}"


def format_nll(value: float) -> str:
    """An NLL with three decimals; nothing if it is not known, and a dash if it is not finite."""
    return "" if value != value else "–" if abs(value) == float("inf") else f"{value:.3f}".replace("-", "−")


def format_metric(value: float | None) -> str:
    """A number with three digits."""
    return "" if value is None else f"{value:.3g}".replace("-", "−")


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def count_plain_choices(path: Path) -> tuple[int, int]:
    """Number of trainings of flat SWAG on the held-out half that chose radius 0, and of those that chose a radius."""
    records: list[Any] = [
        job["records"].get("SWAG flat", {}) for job in read_json(path)["jobs"] if job["half"] == "held-out"
    ]
    radii = [record["radius"]["value"] for record in records if record.get("radius")]
    return radii.count(0), len(radii)


def render_claim(results: Sequence[TaskResult], num_plain: int, num_chosen: int) -> str:
    """What README.md says of the defaults: counts on the held-out half."""
    held_out = [result for result in results if result.half == "held-out"]
    at_best, near_linear, covers, estimator_at_best, estimator_near_linear, estimator_covers, at_plain = (
        (number - len(failures), number) for failures, number in (g.find_failures(held_out) for g in list_goals()[:7])
    )
    swag = (
        "the NLL of flat `SWAG` is at or ahead of the best of four models of scikit-learn and a tuned network on "
        f"{at_best[0]}, at or ahead of plain `SWAG` on {at_plain[0]} of {at_plain[1]} (validation rows chose radius "
        f"0 in {num_plain} of {num_chosen} trainings), and at most 10 % behind a linear model on "
        f"{near_linear[0]}; its 95 % intervals cover 90 to 98 % on {covers[0]} of {covers[1]} sets of numbers"
    )
    estimator = (
        f"For the default estimator these are {estimator_at_best[0]} and {estimator_near_linear[0]} of "
        f"{estimator_at_best[1]}, and {estimator_covers[0]} of {estimator_covers[1]}"
    )
    start = f"**Without any option**, on {at_best[1]} data sets that no default was chosen on"
    return f"{start}: {swag}. {estimator}. [Defaults](docs/defaults.md) lists every loss."


def write_page(page: Path, summary: Path, before: Path | None, readme: Path | None = None) -> None:
    """Replace the tables of a page, and the paragraph of README.md."""
    results, first_splits = load_results(summary), load_results(summary, num_splits=1)
    earlier = [] if before is None else load_results(before)
    tables = {"goals": render_goals(results, earlier)}
    for half in HALVES:
        tables[f"nll {half}"] = render_nll(results, earlier, half)
        tables[f"quality {half}"] = render_quality(results, half)
        tables[f"posteriors {half}"] = render_posteriors(first_splits, half)
    fill_marks(page, tables)
    if readme is not None:
        fill_marks(readme, {"defaults": textwrap.fill(render_claim(results, *count_plain_choices(summary)), 118)})
