"""What a `results.json` says: read it once, ask it small questions.

Everything else in this package draws or prints what the functions here return.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeGuard

Results = Mapping[str, Any]
"""The parsed `results.json` of `flatbayes compare`, with the checked `selection.json`, if any, under `selection`."""

MAX_FLATNESSES_IN_TITLE = 2
"""How many flatnesses may be named in a title."""

RUN_KEYS = ("posterior", "flatness", "seed", "metrics")
SIGNIFICANCE_LEVEL = 0.05
"""Of a corrected p-value below which a verdict stands."""

ROW_KEYS = ("posterior", "metric", "plain", "flat", "winner")


@dataclass(frozen=True)
class Glossary:
    """What the metrics mean.

    Attributes:
        higher_is_better: Direction of each metric.
        definitions: One line of text for each metric.
    """

    higher_is_better: Mapping[str, bool]
    definitions: Mapping[str, str]

    def direction(self, metric: str) -> str:
        """An arrow and words, empty for a metric of unknown direction."""
        if metric not in self.higher_is_better:
            return ""
        return "↑ higher is better" if self.higher_is_better[metric] else "↓ lower is better"


def default_glossary() -> Glossary:
    """The directions and definitions that `flatbayes.metrics` publishes."""
    from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER

    return Glossary(HIGHER_IS_BETTER, DEFINITIONS)


def read_results(folder: Path) -> Results:
    """Read and check `folder/results.json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or not the JSON of a comparison.
    """
    path = folder / "results.json"
    remedy = f"run `flatbayes compare --out {folder}`"
    if not path.is_file():
        raise FileNotFoundError(f"A report needs {path}, which does not exist; {remedy} to make it.")
    try:
        return validate_results(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or not a comparison's ({error}); {remedy}.") from error


def validate_results(results: Any) -> Results:
    """The same results, if nothing of a comparison is missing; else a ValueError that names it."""
    if not isinstance(results, Mapping):
        raise ValueError(f"expected an object, got {type(results).__name__}")
    for part, keys in (("runs", RUN_KEYS), ("summary", ROW_KEYS)):
        entries = results.get(part)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"'{part}' should be a list with at least one entry")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, Mapping) or key not in entry]
            if missing:
                raise ValueError(f"{part}[{number}] lacks {', '.join(map(repr, missing))}")
    return results


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether this is a number one can draw: not null, not NaN, not infinite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def unique_values(values: Iterable[Any]) -> list[Any]:
    """The values in order of first appearance."""
    return list(dict.fromkeys(values))


def list_posteriors(results: Results) -> list[str]:
    """Labels of the posteriors, in order of appearance."""
    return unique_values(row["posterior"] for row in results["summary"])


def list_families(results: Results) -> list[str]:
    """Names of the tables beside the usual metrics, in order of appearance."""
    return [name for name in unique_values(row.get("family") for row in results["summary"]) if name]


def select_family(results: Results, name: str = "") -> Results:
    """The same results, their summary that of one table; by default of the usual metrics."""
    return {**results, "summary": [row for row in results["summary"] if (row.get("family") or "") == name]}


def list_metrics(results: Results) -> list[str]:
    """Names of the metrics, in order of appearance."""
    return unique_values(row["metric"] for row in results["summary"])


def list_seeds(results: Results) -> list[int]:
    """The seeds that were run."""
    return sorted(unique_values(run["seed"] for run in results["runs"]))


def format_subject(results: Results, key: str) -> str:
    """What the runs share under `data` or `model`, joined by commas where they differ."""
    return ", ".join(unique_values(str(run[key]) for run in results["runs"] if run.get(key)))


def is_flat(run: Mapping[str, Any]) -> bool:
    """Whether this run is the flat twin."""
    return str(run["flatness"]).split("(")[0] != "Plain"


def list_flatnesses(results: Results, posterior: str | None = None) -> list[str]:
    """Labels of what is compared with `Plain`, of all posteriors or of one."""
    runs = (run for run in results["runs"] if posterior in (None, run["posterior"]))
    return unique_values(str(run["flatness"]) for run in runs if is_flat(run))


def format_flatnesses(results: Results, fallback: str = "flat") -> str:
    """Label of the flatness that is compared with `Plain`, of both where there are two, else the word `many`."""
    names = list_flatnesses(results)
    return ", ".join(names) if 0 < len(names) <= MAX_FLATNESSES_IN_TITLE else fallback


def format_title(results: Results) -> str:
    """What is compared with what."""
    return f"{format_flatnesses(results, 'Flat')} against plain training"


def select_runs(results: Results, posterior: str, flat: bool) -> list[Mapping[str, Any]]:
    """Runs of one posterior and one twin, by seed."""
    chosen = [run for run in results["runs"] if run["posterior"] == posterior and is_flat(run) == flat]
    return sorted(chosen, key=lambda run: run["seed"])


def find_row(results: Results, posterior: str, metric: str) -> Mapping[str, Any] | None:
    """The summary of one posterior and metric, None where it was not computed."""
    rows = results["summary"]
    return next((row for row in rows if row["posterior"] == posterior and row["metric"] == metric), None)


def judge_row(row: Mapping[str, Any]) -> str:
    """`flat`, `plain`, `tie`, or `unknown` where there is no difference or no interval to judge it by."""
    if not is_finite_number(row.get("difference")) or get_interval(row) is None:
        return "unknown"
    return str(row["winner"]) if row["winner"] in ("flat", "plain") else "tie"


def get_interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % paired interval of the difference, None where there is none."""
    ends = row.get("interval")
    if not ends or len(ends) != 2 or not all(map(is_finite_number, ends)):
        return None
    return ends[0], ends[1]


def count_verdicts(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each verdict."""
    counts = {"flat": 0, "plain": 0, "tie": 0, "unknown": 0}
    for row in rows:
        counts[judge_row(row)] += 1
    return counts


def mean_sd(values: Iterable[Any]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the finite values, None where there are too few."""
    kept = [value for value in values if is_finite_number(value)]
    return (fmean(kept) if kept else None), (stdev(kept) if len(kept) > 1 else None)


def format_count(count: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_conclusion(results: Results) -> str:
    """One plain-language sentence that says what flatness bought."""
    counts = count_verdicts(results["summary"])
    total, count = len(results["summary"]), len(list_seeds(results))
    grid = f"{format_count(len(list_metrics(results)), 'metric')} × {format_count(len(list_posteriors(results)), 'posterior')}"
    flat = format_flatnesses(results, "flat training")
    where = f"Over {format_count(count, 'seed')} on {format_subject(results, 'data') or 'this data'}"
    if counts["unknown"] == total:
        return (
            f"{where}, {flat} was compared with plain training on "
            f"{format_count(total, 'metric')} ({grid}), but no difference has an interval; "
            "a verdict needs at least 2 seeds."
        )
    judged = [row for row in results["summary"] if judge_row(row) in ("flat", "plain")]
    robust = sum(is_finite_number(row.get("p_holm")) and row["p_holm"] < SIGNIFICANCE_LEVEL for row in judged)
    sentence = (
        f"{where}, {flat} improved {counts['flat']} of "
        f"{format_count(total, 'metric')} ({grid}), worsened {counts['plain']}, "
        f"and {format_count(counts['tie'], 'difference')} {'is' if counts['tie'] == 1 else 'are'} within noise "
        "(95 % paired intervals)"
    )
    if judged and any(is_finite_number(row.get("p_holm")) for row in judged):
        sentence += f"; corrected for {format_count(total, 'comparison')} (Holm), {robust} of these verdicts"
        sentence += " still stands" if robust == 1 else " still stand"
    return sentence + (f"; {counts['unknown']} could not be judged." if counts["unknown"] else ".")
