"""Paired statistics, selection, costs and features of the finished trainings: the content of `interpolation.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.spec import short_name
from flatbayes.experiments import RunResult, summarize_runs
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.experiments.run_result import TrainingHistory
from flatbayes.experiments.summary import FAMILY_BY_METRIC
from flatbayes.flatness import Flatness, Plain
from flatbayes.metrics import HIGHER_IS_BETTER
from studies.interpolation.merge import count_verdicts, merge_settings
from studies.interpolation.settings import Setting
from studies.interpolation.study import load_results, select_radii

FLAT_LABEL = "SAM (rho chosen on validation images)"


@dataclass(frozen=True)
class FinishedTraining:
    """Results of one method, flatness and seed by split."""

    method: str
    flatness: Flatness
    seed: int
    results: Mapping[str, RunResult]

    @property
    def is_plain(self) -> bool:
        """Whether it was trained plain."""
        return self.flatness == Plain()

    @property
    def test(self) -> RunResult:
        """The result on test examples, with the labels that `summarize_runs` pairs by."""
        label = short_name(Plain()) if self.is_plain else FLAT_LABEL
        return replace(self.results["test"], posterior=self.method, flatness=label)


def summarize(folder: Path, settings: Sequence[Setting], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that has finished, by setting; what has more trainings in an earlier result is kept."""
    kept = {} if earlier is None else dict(earlier["settings"])
    fresh = {setting.name: summarize_setting(setting, folder / setting.name) for setting in settings}
    for setting in settings:
        if setting.name in kept:
            fresh[setting.name] = merge_settings(kept[setting.name], fresh[setting.name], setting.candidates)
    return {"environment": describe_environment(), "settings": kept | fresh}


def summarize_setting(setting: Setting, folder: Path) -> dict[str, Any]:
    """Selection, paired comparison, features and costs of one setting."""
    setting = replace(setting, common=setting.common.with_fingerprints())
    choice = select_radii(setting, folder)
    trainings = [FinishedTraining(*entry) for entry in load_results(setting, choice, folder)]
    rows = summarize_runs(
        [training.test for training in trainings], short_name(Plain()), HIGHER_IS_BETTER, FAMILY_BY_METRIC
    )
    num_planned = 2 * setting.common.num_seeds * len(setting.candidates)
    return {
        "title": setting.title,
        "num_weights": setting.num_weights,
        "train_size": setting.train_size,
        "epochs": setting.common.config.epochs,
        "radii": setting.radii,
        "seeds": setting.common.num_seeds,
        "selection_seeds": setting.num_selection_seeds,
        "finished": len(trainings),
        "planned": num_planned,
        "selected": {name: method.flatness.radius for name, method in choice.methods.items() if method.flatness},
        "plain_is_best_on_validation": choice.unpaid,
        "trials": [asdict(trial) for trial in choice.trials],
        "counts": count_verdicts(rows),
        "rows": [row.to_dict() for row in rows],
        "law": describe_twins(setting, trainings),
        "sharing": measure_sharing(trainings),
    }


def describe_twins(setting: Setting, trainings: Sequence[FinishedTraining]) -> list[dict[str, Any]]:
    """What plain training of every method shows, and the test NLLs of its pairs, for `studies.law`.

    The training loss is the NLL of the prediction on training examples without augmentation; of a method without that
    evaluation it is that of MAP, if they share the training, and otherwise the mean loss in the last epoch.
    """
    finished = {(t.method, t.is_plain, t.seed): t.results for t in trainings}
    records = []
    for method in dict.fromkeys(training.method for training in trainings):
        seeds = [s for s in range(setting.common.num_seeds) if all((method, p, s) in finished for p in (True, False))]
        if not seeds:
            continue
        plain = [finished[method, True, seed] for seed in seeds]
        maps = [finished.get(("MAP", True, seed), {}) for seed in seeds]
        features = [measure_features(own, base) for own, base in zip(plain, maps, strict=True)]
        record: dict[str, Any] = {"method": method, "seeds": seeds}
        for name in features[0]:
            values = [feature[name] for feature in features]
            numbers = [value for value in values if value is not None]
            record[name] = fmean(numbers) if len(numbers) == len(values) else None
        record["weights_per_example"] = setting.num_weights / setting.train_size
        for key, is_plain in (("plain_nll", True), ("flat_nll", False)):
            record[key] = [finished[method, is_plain, seed]["test"].metrics["nll"] for seed in seeds]
        records.append(record)
    return records


def measure_features(own: Mapping[str, RunResult], base: Mapping[str, RunResult]) -> dict[str, float | None]:
    """Loss, gap, rise and sharpness of a plain training; the sharpness is that of MAP (`base`) with the same seed."""
    history = own["val"].history or TrainingHistory()
    is_shared = "val" in base and base["val"].history == history
    evaluated = own if "train" in own else base if is_shared else {}
    loss = evaluated["train"].metrics["nll"] if "train" in evaluated else history.loss[-1]
    val_nlls = [nll for nll in history.val_nll if nll is not None]
    last = own["val"].metrics["nll"]
    return {
        "train_loss": loss,
        "last_epoch_loss": history.loss[-1],
        "gap": None if last is None or loss is None else last - loss,
        "rise": val_nlls[-1] - min(val_nlls) if val_nlls else None,
        "sharpness": base["train"].metrics.get("gap_one_step") if "train" in base else None,
    }


def measure_sharing(trainings: Sequence[FinishedTraining]) -> dict[str, float]:
    """Gradients and seconds of training with one training for each method, and with shared ones.

    Trainings with the same history are the same training; of an ensemble it is that of its first network.
    """
    groups: dict[str, list[FinishedTraining]] = {}
    for training in trainings:
        key = f"{training.is_plain} {short_name(training.flatness)} {training.seed} {training.test.history}"
        groups.setdefault(key, []).append(training)
    costs = [[training.results["test"].cost for training in group] for group in groups.values()]
    sums = {}
    for name in ("gradients", "train_seconds"):
        values = [[float(getattr(cost, name) or 0.0) for cost in group] for group in costs]
        sums[f"{name}_alone"], sums[f"{name}_shared"] = sum(map(sum, values)), sum(map(max, values))
    return sums
