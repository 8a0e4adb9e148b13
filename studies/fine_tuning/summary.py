"""Summary of finished trainings of fine-tuning: paired differences, verdicts, choices, gains in numbers of examples.

A training is a JSON file with `trained`, `size`, `seed`, `rho` and `kind`, metrics by posterior in `val` and `test`,
what the training shows of itself in `law`, and its `cost`. `selection.json` of a setting has the chosen `rho`. Plain
trainings of fewer `epochs` have the kind `short`; `selection-epochs.json` has the chosen number.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import read_json, replace_nonfinite
from flatbayes.experiments import RunResult, SummaryRow
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.experiments.summary import summarize_runs
from flatbayes.metrics import ensemble_equivalent

EPOCHS_FILE = "selection-epochs.json"
MAIN_METRICS = ("accuracy", "nll", "ece")
LAW_FEATURES = ("train_loss", "gap", "sharpness", "weights_per_example")


@dataclass(frozen=True)
class SettingPlan:
    """What is trained with how many examples, and how much of it there will be.

    Attributes:
        name: Name of its folder.
        trained: What is trained.
        size: Number of training examples.
        epochs: Epochs of training.
        num_trainings: Number of planned trainings.
    """

    name: str
    trained: str
    size: int
    epochs: int | None
    num_trainings: int


def summarize_trainings(
    trainings: Sequence[dict[str, Any]],
    folder: Path,
    plans: Sequence[SettingPlan],
    metrics: Mapping[str, bool],
    packages: Iterable[str] = (),
) -> dict[str, Any]:
    """Everything that a page shows, as plain data.

    Args:
        trainings: All finished trainings.
        folder: Folder of the study.
        plans: All settings, in the order of the page.
        metrics: Whether higher is better, by name of the metric.
        packages: Packages whose versions matter beside those of the environment.
    """
    by_setting = {
        plan: [t for t in trainings if (t["trained"], t["size"]) == (plan.trained, plan.size)] for plan in plans
    }
    settings = [
        summarize_setting(plan, mine, folder / plan.name / "selection.json", metrics)
        for plan, mine in by_setting.items()
        if mine
    ]
    tables = [setting["rows"] for setting in settings]
    data = {
        "environment": describe_environment() | read_versions(packages),
        "finished_trainings": len(trainings),
        "planned_trainings": sum(plan.num_trainings for plan in plans),
        "cpu_minutes": sum(training["cpu_seconds"] for training in trainings) / 60,
        "verdicts": {
            "all": count_verdicts(tables, tuple(metrics)),
            "accuracy, nll, ece": count_verdicts(tables, MAIN_METRICS),
            "chosen epochs": count_verdicts([setting["rows_chosen_epochs"] for setting in settings], MAIN_METRICS),
        },
        "settings": settings,
        "worth_examples": compare_sizes(settings),
        "law": [record for setting in settings for record in list_law_records(by_setting, setting)],
        "trainings": [describe_training(training) for training in trainings],
    }
    plain: dict[str, Any] = replace_nonfinite(data)
    return plain


def read_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed.

    Args:
        packages: Names as in a package registry.
    """
    versions: dict[str, str] = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def summarize_setting(
    plan: SettingPlan, trainings: Sequence[dict[str, Any]], selection: Path, metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """Choice of the radius, paired comparison of every posterior and metric, cost.

    Args:
        plan: The setting.
        trainings: Its finished trainings.
        selection: File of the choice, if it has been made.
        metrics: Whether higher is better, by name of the metric.
    """
    record, epochs_record = (
        read_json(path) if path.is_file() else None for path in (selection, selection.with_name(EPOCHS_FILE))
    )
    rho = None if record is None else record["rho"]
    full = [training for training in trainings if training["kind"] != "short"]
    short = [t for t in trainings if epochs_record is not None and t.get("epochs") == epochs_record["epochs"]]
    shared = [t["cost"] for t in trainings if t["kind"] == "shared"]
    one_by_one, together = (sum(cost[key] for cost in shared) for key in ("seconds_one_by_one", "seconds_together"))
    return {
        "trained": plan.trained,
        "size": plan.size,
        "name": plan.name,
        "epochs": plan.epochs,
        "finished_trainings": len(trainings),
        "planned_trainings": plan.num_trainings,
        "cpu_minutes": sum(training["cpu_seconds"] for training in trainings) / 60,
        "sharing_factor": one_by_one / together if together else None,
        "selection": record,
        "selection_epochs": epochs_record,
        "rows": compare_twins(full, full, rho, metrics),
        "rows_chosen_epochs": compare_twins(short, full, rho, metrics),
        "worth_ensemble": measure_ensemble_equivalents(full, record),
    }


def compare_twins(
    plain: Sequence[dict[str, Any]], flat: Sequence[dict[str, Any]], rho: float | None, metrics: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """Paired comparison on test examples as plain data; with a chosen radius of 0 both are the same.

    Args:
        plain: Trainings, of which those of radius 0 count.
        flat: Trainings, of which those of the chosen radius count.
        rho: The chosen radius; None if it has not been chosen.
        metrics: Whether higher is better, by name of the metric.
    """
    if rho is None:
        return []
    runs = [
        RunResult(name, label, training["seed"], {key: values.get(key) for key in metrics})
        for label, radius, trainings in (("plain", 0.0, plain), ("flat", rho, flat))
        for training in trainings
        if training["rho"] == radius
        for name, values in training.get("test", {}).items()
    ]
    rows = summarize_runs(runs, "plain", metrics)
    return [row.to_dict() | {"verdict": row.verdict, "verdict_holm": apply_holm(row)} for row in rows]


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
        if t["rho"] == 0 and "ensemble_nlls" in t.get("test", {}).get("Ensemble", {})
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
    """How many more labelled examples plain training needs for the NLL of flat training.

    Args:
        settings: Summaries of the settings.
    """
    results = []
    for trained in dict.fromkeys(setting["trained"] for setting in settings):
        nlls: dict[str, dict[int, tuple[float, float]]] = {}
        for setting in settings:
            for row in setting["rows"]:
                if setting["trained"] == trained and row["metric"] == "nll" and row["interval"] is not None:
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
    keys = ("trained", "size", "seed", "rho", "kind", "epochs")
    fixed = {key: training[key] for key in keys if key in training}
    return {**fixed, **training.get("law", {}), **{f"{key}_nll": values for key, values in nlls.items()}}


def list_law_records(
    trainings: Mapping[SettingPlan, Sequence[dict[str, Any]]], setting: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For every posterior of a setting, what plain training shows and the test NLL of the twins by seed.

    The features are means over the seeds of plain MAP training, whose network the posteriors are made from.

    Args:
        trainings: Finished trainings by setting.
        setting: Summary of the setting.
    """
    every = next(value for plan, value in trainings.items() if plan.name == setting["name"])
    mine = [training for training in every if training["kind"] != "short"]
    rho = None if setting["selection"] is None else setting["selection"]["rho"]
    laws = [t["law"] for t in mine if t["rho"] == 0 and "law" in t and "test" in t]
    if not rho or not laws:
        return []
    features = {name: fmean(law[name] for law in laws) for name in LAW_FEATURES}
    nlls = {
        (name, t["rho"], t["seed"]): metrics["nll"]
        for t in mine
        if t["rho"] in (0.0, rho)
        for name, metrics in t.get("test", {}).items()
        if metrics["nll"] is not None
    }
    records = []
    for name in dict.fromkeys(name for name, _, _ in nlls):
        seeds = sorted(s for n, r, s in nlls if (n, r) == (name, 0.0) and (name, rho, s) in nlls)
        twins = {key: [nlls[name, r, s] for s in seeds] for key, r in (("plain_nll", 0.0), ("flat_nll", rho))}
        if seeds:
            records.append({"setting": setting["name"], "method": name, "rho": rho, **features, **twins})
    return records
