"""Summary of finished trainings of fine-tuning: paired differences, verdicts, choices, gains in numbers of examples.

A training is a JSON file with `trained`, `size`, `seed`, `rho` and `kind`, metrics by posterior in `val` and `test`,
what the training shows of itself in `law`, and its `cost`. `selection.json` of a setting has radius and number of
epochs of the `plain` and the `flat` twin.
"""

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
from studies.fine_tuning.labels import is_without_warmup
from studies.fine_tuning.worth import Twins, compare_sizes, measure_ensemble_equivalents

SELECTION_FILE = "selection.json"
MAIN_METRICS = ("accuracy", "nll", "ece")
EMPTY: Mapping[str, Any] = {"settings": (), "law": (), "trainings": ()}
"""A summary of nothing."""
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
        fixed_kinds: Kinds of trainings for which the number of epochs is not chosen.
    """

    name: str
    trained: str
    size: int
    epochs: int | None
    num_trainings: int
    fixed_kinds: Sequence[str] = ()


def summarize_trainings(
    trainings: Sequence[dict[str, Any]],
    folder: Path,
    plans: Sequence[SettingPlan],
    metrics: Mapping[str, bool],
    packages: Iterable[str] = (),
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a page shows, as plain data.

    Args:
        trainings: All finished trainings.
        folder: Folder of the study.
        plans: All settings, in the order of the page.
        metrics: Whether higher is better, by name of the metric.
        packages: Packages whose versions matter beside those of the environment.
        earlier: An earlier summary, perhaps of another folder; its settings with more trainings are kept.
    """
    by_setting = {
        plan: [t for t in trainings if (t["trained"], t["size"]) == (plan.trained, plan.size)] for plan in plans
    }
    earlier = earlier or EMPTY
    constant = {setting["name"]: setting for setting in earlier["settings"] if is_without_warmup(setting)}
    kept = select_kept(earlier, {plan.name: len(mine) for plan, mine in by_setting.items()})
    by_setting = {plan: mine for plan, mine in by_setting.items() if mine and plan.name not in kept}
    fresh = {
        plan.name: summarize_setting(plan, mine, folder / plan.name, metrics) for plan, mine in by_setting.items()
    }
    groups = [[by[plan.name] for by in (kept, fresh, constant) if plan.name in by] for plan in plans]
    settings = [setting for group in groups for setting in group]
    tables = [setting["rows"] for setting in settings]
    kept_keys = {(s["trained"], s["size"], is_without_warmup(s)) for s in (*kept.values(), *constant.values())}
    data = {
        "environment": describe_environment() | read_versions(packages),
        "finished_trainings": sum(group[0]["finished_trainings"] for group in groups if group),
        "planned_trainings": sum(plan.num_trainings for plan in plans),
        "cpu_minutes": sum(setting["cpu_minutes"] for setting in settings),
        "verdicts": {
            "all": count_verdicts(tables, tuple(metrics)),
            "accuracy, nll, ece": count_verdicts(tables, MAIN_METRICS),
            "equal length": count_verdicts([setting["rows_equal_length"] for setting in settings], MAIN_METRICS),
        },
        "settings": settings,
        "worth_examples": compare_sizes(settings),
        "law": [
            record for record in earlier["law"] if record["setting"] in {**kept, **constant}.keys() - fresh.keys()
        ]
        + [record for setting in fresh.values() for record in list_law_records(by_setting, setting)],
        "trainings": [t for t in earlier["trainings"] if (t["trained"], t["size"], is_without_warmup(t)) in kept_keys]
        + [describe_training(training) for mine in by_setting.values() for training in mine],
    }
    plain: dict[str, Any] = replace_nonfinite(data)
    return plain


def select_kept(earlier: Mapping[str, Any], num_trainings: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Settings of an earlier summary that have more trainings than a folder, by name; not those without a warm-up."""
    return {
        setting["name"]: setting
        for setting in earlier["settings"]
        if setting["finished_trainings"] > num_trainings.get(setting["name"], 0) and not is_without_warmup(setting)
    }


def read_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions: dict[str, str] = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def summarize_setting(
    plan: SettingPlan, trainings: Sequence[dict[str, Any]], folder: Path, metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """Choices, paired comparison of every posterior and metric, cost."""
    record = read_choices(folder)
    twins = find_twins(plan, trainings, record)
    equal_length = find_twins(plan, trainings, record, with_all_epochs=True)
    has_choice = record is not None and any(record[twin]["epochs"] != plan.epochs for twin in twins)
    shared = [t["cost"] for t in trainings if t["kind"] == "shared"]
    one_by_one, together = (sum(cost[key] for cost in shared) for key in ("seconds_one_by_one", "seconds_together"))
    return {
        "trained": plan.trained,
        "size": plan.size,
        "name": plan.name,
        "epochs": plan.epochs,
        "finished_trainings": len(trainings),
        "planned_trainings": plan.num_trainings,
        "cpu_minutes": sum_cpu_minutes(folder),
        "devices": sorted({name for t in trainings if (name := t.get("cost", {}).get("device"))}),
        "sharing_factor": one_by_one / together if together else None,
        "selection": record,
        "warmup": find_warmup(trainings),
        "mean_cost": {key: average_cost(twins, key) for key in ("gradients", "num_epochs")},
        "rows": compare_twins(twins, metrics),
        "rows_equal_length": compare_twins(equal_length, metrics) if has_choice else [],
        "worth_ensemble": measure_ensemble_equivalents(twins),
    }


def find_warmup(trainings: Sequence[Mapping[str, Any]]) -> float:
    """Fraction of the longest training over which the learning rate rises; 0 where the results do not say.

    Args:
        trainings: Results of a setting.

    Raises:
        ValueError: They differ.
    """
    (warmup, *others) = sorted({float(training.get("warmup", 0.0)) for training in trainings})
    if others:
        raise ValueError(f"Trainings of one setting have the warm-ups {[warmup, *others]}: remove those of one.")
    return warmup


def read_choices(folder: Path) -> dict[str, Any] | None:
    """Choices of a setting; None before they are made."""
    path = folder / SELECTION_FILE
    record: Any = read_json(path) if path.is_file() else None
    return record  # type: ignore[no-any-return]


def average_cost(twins: Twins, key: str) -> dict[str, float]:
    """Mean of a number in `cost` over the shared trainings of each twin; empty unless all have it."""
    values = {t: [x["cost"].get(key) for x in mine if x["kind"] == "shared"] for t, mine in twins.items()}
    if not all(mine and all(value is not None for value in mine) for mine in values.values()):
        return {}
    return {twin: fmean(mine) for twin, mine in values.items()}


def sum_cpu_minutes(folder: Path) -> float:
    """CPU minutes of all trainings of a setting, those of its choices among them."""
    results: list[Any] = [read_json(path) for path in folder.glob("*-*-*.json")]
    return float(sum(result.get("cpu_seconds", 0.0) for result in results)) / 60


def find_twins(
    plan: SettingPlan,
    trainings: Sequence[dict[str, Any]],
    record: Mapping[str, Any] | None,
    *,
    with_all_epochs: bool = False,
) -> Twins:
    """Trainings with the radius and the number of epochs of each twin.

    Args:
        plan: The setting.
        trainings: Its finished trainings.
        record: The choices; without them there are no twins.
        with_all_epochs: Take those with all epochs, instead of the chosen number.
    """
    return {
        twin: [] if record is None else [t for t in trainings if is_twin(t, plan, record[twin], with_all_epochs)]
        for twin in ("plain", "flat")
    }


def is_twin(training: Mapping[str, Any], plan: SettingPlan, choice: Mapping[str, Any], with_all_epochs: bool) -> bool:
    """Whether a training has the radius and the number of epochs of a twin."""
    is_fixed = with_all_epochs or training["kind"] in plan.fixed_kinds
    epochs = plan.epochs if is_fixed else choice["epochs"]
    return training["rho"] == choice["rho"] and get_epochs(training, plan) == epochs


def get_epochs(training: Mapping[str, Any], plan: SettingPlan) -> int | None:
    """Number of epochs of a training; that of its setting where it does not say."""
    epochs: int | None = training.get("epochs", plan.epochs)
    return epochs


def compare_twins(twins: Twins, metrics: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Paired comparison on test examples as plain data; empty where a twin has none."""
    runs = [
        RunResult(name, twin, training["seed"], {key: values.get(key) for key in metrics})
        for twin, trainings in twins.items()
        for training in trainings
        for name, values in training.get("test", {}).items()
    ]
    if len({run.flatness for run in runs}) < len(twins):
        return []
    rows = summarize_runs(runs, "plain", metrics)
    return [row.to_dict() | {"verdict": row.verdict, "verdict_holm": apply_holm(row)} for row in rows]


def apply_holm(row: SummaryRow) -> str:
    """The verdict after Holm's correction over the table of the setting."""
    if row.verdict not in ("flat", "plain"):
        return row.verdict
    return row.verdict if row.p_holm is not None and row.p_holm < 0.05 else "tie"


def count_verdicts(
    tables: Sequence[Sequence[Mapping[str, Any]]], metrics: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Numbers of verdicts before and after Holm's correction."""
    rows = [row for table in tables for row in table if row["metric"] in metrics]
    return {
        name: dict(Counter(row[key] for row in rows))
        for name, key in (("before", "verdict"), ("after", "verdict_holm"))
    }


def describe_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """What a training shows, and validation and test NLL of its posteriors, for the study of when flatness helps."""
    nlls = {key: {name: m["nll"] for name, m in training[key].items()} for key in ("val", "test") if key in training}
    keys = ("trained", "size", "seed", "rho", "kind", "epochs", "warmup")
    fixed = {key: training[key] for key in keys if key in training}
    return {**fixed, **training.get("law", {}), **{f"{key}_nll": values for key, values in nlls.items()}}


def list_law_records(
    trainings: Mapping[SettingPlan, Sequence[dict[str, Any]]], setting: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For every posterior, what plain training shows and the test NLL of the twins by seed, both with all epochs.

    The features are means over the seeds of plain MAP training, whose network the posteriors are made from.
    """
    plan = next(plan for plan in trainings if plan.name == setting["name"])
    mine = [training for training in trainings[plan] if get_epochs(training, plan) == plan.epochs]
    rho = None if setting["selection"] is None else setting["selection"]["flat"]["rho"]
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
