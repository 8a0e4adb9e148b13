"""Summary of the finished trainings: paired differences, verdicts, choices, and gains in numbers of examples."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import read_json, replace_nonfinite
from flatbayes.experiments import RunResult, SummaryRow
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.experiments.summary import summarize_runs
from flatbayes.metrics import ensemble_equivalent
from studies.sentences.evaluation import NUM_DRAWS
from studies.sentences.study import NUM_SEEDS, SETTINGS, Setting, count_trainings, load_trainings
from studies.sentences.task import NUM_OOD, NUM_TEST, NUM_VAL

METRICS = {
    "accuracy": True,
    "nll": False,
    "ece": False,
    "brier": False,
    "aurc": False,
    "nll_calibrated": False,
    "auroc_shuffled": True,
    "auroc_foreign": True,
}
"""Whether higher is better."""
PACKAGES = ("transformers", "tokenizers", "peft")
MAIN_METRICS = ("accuracy", "nll", "ece")


def summarize_study(folder: Path) -> dict[str, Any]:
    """Everything that the page shows, as plain data.

    Args:
        folder: Folder of the study.
    """
    trainings = list(load_trainings(folder))
    settings = [
        summarize_setting(setting, mine, folder / setting.name / "selection.json")
        for setting in SETTINGS
        if (mine := [t for t in trainings if (t["trained"], t["size"]) == (setting.trained, setting.size)])
    ]
    data = {
        "environment": describe_environment() | {name: version(name) for name in PACKAGES if find_spec(name)},
        "num_sentences": {"val": NUM_VAL, "test": NUM_TEST, "shuffled": NUM_OOD, "foreign": NUM_OOD},
        "num_draws": NUM_DRAWS,
        "finished_trainings": len(trainings),
        "planned_trainings": sum(map(count_trainings, SETTINGS)),
        "cpu_minutes": sum(training["cpu_seconds"] for training in trainings) / 60,
        "verdicts": {name: count_verdicts([s["rows"] for s in settings], names) for name, names in (
            ("all", tuple(METRICS)), ("accuracy, nll, ece", MAIN_METRICS))},
        "settings": settings,
        "worth_examples": compare_sizes(settings),
        "trainings": [describe_training(training) for training in trainings],
    }  # fmt: skip
    plain: dict[str, Any] = replace_nonfinite(data)
    return plain


def summarize_setting(setting: Setting, trainings: Sequence[dict[str, Any]], selection: Path) -> dict[str, Any]:
    """Choice of the radius, paired comparison of every posterior and metric, cost.

    Args:
        setting: The setting.
        trainings: Its finished trainings.
        selection: File of the choice, if it has been made.
    """
    record: Any = read_json(selection) if selection.is_file() else None
    runs = [] if record is None else make_runs(trainings, record["rho"])
    rows = summarize_runs(runs, "plain", METRICS)
    shared = [t["cost"] for t in trainings if t["kind"] == "shared"]
    one_by_one, together = (sum(cost[key] for cost in shared) for key in ("seconds_one_by_one", "seconds_together"))
    return {
        "trained": setting.trained,
        "size": setting.size,
        "name": setting.name,
        "epochs": setting.make_config().epochs,
        "finished_trainings": len(trainings),
        "planned_trainings": count_trainings(setting),
        "cpu_minutes": sum(training["cpu_seconds"] for training in trainings) / 60,
        "sharing_factor": one_by_one / together if together else None,
        "selection": record,
        "rows": [row.to_dict() | {"verdict": row.verdict, "verdict_holm": apply_holm(row)} for row in rows],
        "worth_ensemble": measure_ensemble_equivalents(trainings, record),
    }


def make_runs(trainings: Sequence[dict[str, Any]], rho: float) -> list[RunResult]:
    """Plain and flat results on test sentences; with a chosen radius of 0 they are the same.

    Args:
        trainings: Finished trainings of a setting.
        rho: The chosen radius.
    """
    return [
        RunResult(name, label, training["seed"], {key: metrics.get(key) for key in METRICS})
        for label, radius in (("plain", 0.0), ("flat", rho))
        for training in trainings
        if training["rho"] == radius
        for name, metrics in training.get("test", {}).items()
    ]


def apply_holm(row: SummaryRow) -> str:
    """The verdict after Holm's correction over the table of the setting.

    Args:
        row: A comparison.
    """
    if row.verdict not in ("flat", "plain"):
        return row.verdict
    return row.verdict if row.p_holm is not None and row.p_holm < 0.05 else "tie"


def count_verdicts(
    tables: Sequence[Sequence[Mapping[str, Any]]], metrics: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Numbers of verdicts before and after Holm's correction.

    Args:
        tables: Rows of every setting.
        metrics: Names of the metrics that count.
    """
    rows = [row for table in tables for row in table if row["metric"] in metrics]
    return {
        name: dict(Counter(row[key] for row in rows))
        for name, key in (("before", "verdict"), ("after", "verdict_holm"))
    }


def measure_ensemble_equivalents(
    trainings: Sequence[dict[str, Any]], record: Mapping[str, Any] | None
) -> dict[str, dict[str, float]]:
    """Size of the plain ensemble of the same calibrated NLL, 1 to 3, averaged over seeds, plain and flat.

    Args:
        trainings: Finished trainings of a setting.
        record: The choice of the radius.
    """
    curves = {
        t["seed"]: t["test"]["Ensemble"]["ensemble_nlls"]
        for t in trainings
        if t["kind"] == "ensemble" and t["rho"] == 0 and "ensemble_nlls" in t.get("test", {}).get("Ensemble", {})
    }
    radii = {"plain": 0.0} | ({} if record is None else {"flat": record["rho"]})
    values: dict[str, dict[str, list[float]]] = {}
    for label, rho in radii.items():
        for training in trainings:
            for name, metrics in training.get("test", {}).items():
                value = metrics.get("nll_calibrated")
                if training["rho"] == rho and training["seed"] in curves and value is not None:
                    size = ensemble_equivalent(value, curves[training["seed"]])
                    values.setdefault(name, {}).setdefault(label, []).append(size)
    return {name: {label: fmean(sizes) for label, sizes in by.items()} for name, by in values.items()}


def compare_sizes(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many more labelled sentences plain training needs for the NLL of flat training.

    Args:
        settings: Summaries of the settings.
    """
    results = []
    for trained in dict.fromkeys(setting["trained"] for setting in settings):
        nlls: dict[str, dict[int, tuple[float, float]]] = {}
        for setting in settings:
            for row in setting["rows"]:
                if setting["trained"] == trained and row["metric"] == "nll" and row["num_seeds"] == NUM_SEEDS:
                    nlls.setdefault(row["posterior"], {})[setting["size"]] = row["plain"], row["flat"]
        for name, by_size in nlls.items():
            sizes = sorted(by_size)
            curve = [by_size[size][0] for size in sizes]
            results += [
                {
                    "trained": trained,
                    "posterior": name,
                    "size": size,
                    "plain": by_size[size][0],
                    "flat": by_size[size][1],
                    "equal_plain_size": find_equal_size(by_size[size][1], sizes, curve),
                }
                for size in sizes
            ]
    return results


def find_equal_size(nll: float, sizes: Sequence[int], nlls: Sequence[float]) -> float | None:
    """Number of training examples with which plain training has an NLL, interpolated in the logarithm of the number.

    Args:
        nll: The NLL.
        sizes: Numbers of training examples, in ascending order.
        nlls: NLL of plain training for each.

    Returns:
        The first number at which the curve crosses the NLL; None if all its values are above it (more than the
        largest size), or the first is already below (fewer than the smallest).
    """
    if not sizes or nlls[0] < nll:
        return None
    if nlls[0] == nll:
        return float(sizes[0])
    for (n0, y0), (n1, y1) in zip(zip(sizes, nlls), zip(sizes[1:], nlls[1:])):  # noqa: B905  # pairs of neighbours
        if y1 <= nll:
            fraction = (y0 - nll) / (y0 - y1)
            return math.exp(math.log(n0) + fraction * math.log(n1 / n0))
    return None


def describe_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """What a training shows, and validation and test NLL of its posteriors, for the study of when flatness helps.

    Args:
        training: Result of a training.
    """
    nlls = {key: {name: m["nll"] for name, m in training[key].items()} for key in ("val", "test") if key in training}
    fixed = {key: training[key] for key in ("trained", "size", "seed", "rho", "kind")}
    return {**fixed, **training.get("law", {}), **{f"{key}_nll": values for key, values in nlls.items()}}
