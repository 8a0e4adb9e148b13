"""Trainings of the study: which, in which order, and what is chosen from them.

A training is evaluated on validation, training and test examples together. The choice of hyperparameters reads the
validation scores only:

1. every candidate, plain, on the seeds of the selection
2. the candidate with the lowest validation NLL, with SAM of every radius, on the same seeds
3. for each training, the radius with the lowest validation NLL, averaged over the methods that share it; the
   remaining seeds, plain and with this radius
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.spec import short_name
from flatbayes.experiments import EvaluationConfig, ExperimentRun, Method, RunResult, SelectionTrial, execute_runs
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.posteriors import Ensemble
from flatbayes.training.identity import describe_training
from studies.interpolation.settings import Setting

EVALUATIONS = {
    "test": EvaluationConfig(calibration=True),
    "val": EvaluationConfig(),
    "train": EvaluationConfig(),
}
"""Evaluations by split."""
SHARPNESS = EvaluationConfig(sharpness_rho=0.05, max_examples=500, num_sharpness_draws=1)
"""Evaluation of MAP on training examples."""


@dataclass(frozen=True)
class Choice:
    """What validation data chose.

    Attributes:
        methods: The chosen candidate of every method, with SAM of the chosen radius.
        trials: All trials with their scores.
        unpaid: Methods for which plain training has the best validation score.
    """

    methods: Mapping[str, Method]
    trials: tuple[SelectionTrial, ...]
    unpaid: tuple[str, ...]


def list_evaluations(
    setting: Setting, name: str, method: Method, flatness: Flatness, seed: int
) -> dict[str, ExperimentRun]:
    """The evaluations of one training by split; on training examples only where the setting says so."""
    run = replace(setting.common.make_run(method, flatness, seed), posterior_name=name)
    runs = {split: replace(run, split=split, evaluations=config) for split, config in EVALUATIONS.items()}
    if name == "MAP":
        runs["train"] = replace(runs["train"], evaluations=SHARPNESS)
    if setting.observed is not None and name not in setting.observed:
        del runs["train"]
    return runs


def list_runs(
    setting: Setting,
    settings: Mapping[str, Sequence[tuple[Method, Flatness]]],
    seeds: Sequence[int],
    splits: Collection[str] = EVALUATIONS,
) -> list[ExperimentRun]:
    """The runs of methods with flatnesses, the seeds outermost, so that an interrupted study has complete seeds."""
    return [
        run
        for seed in seeds
        for name, pairs in settings.items()
        for method, flatness in pairs
        for split, run in list_evaluations(setting, name, method, flatness, seed).items()
        if split in splits
    ]


def find_complete_seeds(
    setting: Setting, settings: Mapping[str, Sequence[tuple[Method, Flatness]]], folder: Path
) -> list[int]:
    """Seeds of the selection for which all trainings have finished."""
    return [
        seed
        for seed in range(setting.num_selection_seeds)
        if all(run.load_result(folder / "runs") is not None for run in list_runs(setting, settings, [seed], ["val"]))
    ]


def read_score(
    setting: Setting, name: str, method: Method, flatness: Flatness, seeds: Sequence[int], folder: Path
) -> float:
    """Validation NLL averaged over seeds; infinite where it is not a number."""
    runs = list_runs(setting, {name: [(method, flatness)]}, seeds, ["val"])
    scores = [result.metrics["nll"] for run in runs if (result := run.load_result(folder / "runs")) is not None]
    return fmean(math.inf if score is None else score for score in scores)


def select_plain(setting: Setting, folder: Path) -> dict[str, tuple[Method, list[SelectionTrial]]]:
    """For every method with finished trials, the candidate with the lowest validation NLL of plain training."""
    selected = {}
    for name, candidates in setting.candidates.items():
        seeds = find_complete_seeds(setting, {name: [(method, Plain()) for method in candidates]}, folder)
        if seeds:
            scores = [read_score(setting, name, method, Plain(), seeds, folder) for method in candidates]
            best = scores.index(min(scores))
            trials = [
                SelectionTrial(name, candidates[i].setting, "plain", score, i == best)
                for i, score in enumerate(scores)
            ]
            selected[name] = (candidates[best], trials)
    return selected


def select_radii(setting: Setting, folder: Path) -> Choice:
    """For every training with finished trials, the radius that is best for the methods that share it."""
    plain = select_plain(setting, folder)
    flatnesses = [Plain(), *(SAM(rho=rho) for rho in setting.radii)]
    methods: dict[str, Method] = {}
    trials, unpaid = [trial for _, group in plain.values() for trial in group], []
    for names in group_methods(setting, {name: method for name, (method, _) in plain.items()}).values():
        judges = list_judges(setting, names, plain)
        pairs = {name: [(plain[name][0], flatness) for flatness in flatnesses] for name in judges}
        seeds = find_complete_seeds(setting, pairs, folder)
        if not seeds:
            continue
        scores = {
            name: [read_score(setting, name, method, f, seeds, folder) for method, f in group]
            for name, group in pairs.items()
        }
        means = [fmean(scores[name][i] for name in judges) for i in range(1, len(flatnesses))]
        best = 1 + means.index(min(means))
        methods |= {name: replace(plain[name][0], flatness=flatnesses[best], name=name) for name in names}
        for name in judges:
            trials += [
                SelectionTrial(name, short_name(flatnesses[i]), "flat", scores[name][i], i == best)
                for i in range(1, len(flatnesses))
            ]
            if scores[name][best] >= scores[name][0]:
                unpaid.append(name)
    return Choice({name: methods[name] for name in plain if name in methods}, tuple(trials), tuple(unpaid))


def group_methods(setting: Setting, methods: Mapping[str, Method]) -> dict[str, list[str]]:
    """Names of the methods by the training that they share; with one seed of the selection only.

    With several seeds every method has a radius of its own: the trainings of all radii exist for all seeds.
    """
    groups: dict[str, list[str]] = {}
    for name, method in methods.items():
        posterior = method.posterior.member if isinstance(method.posterior, Ensemble) else method.posterior
        training = describe_training(posterior, method.apply_overrides(setting.common.config), Plain())
        is_shared = setting.num_selection_seeds < setting.common.num_seeds
        groups.setdefault(str(training) if is_shared else name, []).append(name)
    return groups


def list_judges(setting: Setting, names: Sequence[str], plain: Mapping[str, tuple[Method, Any]]) -> list[str]:
    """Methods of a shared training whose scores choose its radius: all but ensembles, which take that of a member."""
    single = [name for name in names if not isinstance(plain[name][0].posterior, Ensemble)]
    return single if setting.num_selection_seeds < setting.common.num_seeds and single else list(names)


def run_setting(setting: Setting, folder: Path, methods: Sequence[str] | None = None) -> list[str]:
    """Execute what is missing, in the order of the module's docstring, and return the failures."""
    if methods is not None:
        setting = replace(setting, candidates={n: c for n, c in setting.candidates.items() if n in methods})
    setting = replace(setting, common=setting.common.with_fingerprints())
    seeds, failures = range(setting.common.num_seeds), []
    selection_seeds = seeds[: setting.num_selection_seeds]

    def execute(pairs: Mapping[str, Sequence[tuple[Method, Flatness]]], seeds: Sequence[int]) -> None:
        print(time.strftime("%H:%M:%S"), setting.name, "seeds", list(seeds), flush=True)
        runs = list_runs(setting, pairs, seeds)
        failures.extend(execute_runs(runs, folder / "runs", jobs=1, show_progress=False))

    execute({name: [(m, Plain()) for m in group] for name, group in setting.candidates.items()}, selection_seeds)
    plain = select_plain(setting, folder)
    flatnesses = [SAM(rho=rho) for rho in setting.radii]
    groups = group_methods(setting, {name: method for name, (method, _) in plain.items()})
    judges = [name for names in groups.values() for name in list_judges(setting, names, plain)]
    for seed in selection_seeds:
        execute({name: [(plain[name][0], f) for f in flatnesses] for name in judges}, [seed])
    chosen = select_radii(setting, folder).methods
    for seed in seeds:
        execute({n: [(m, Plain()), (m, m.flatness or SAM())] for n, m in chosen.items()}, [seed])
    return failures


def load_results(
    setting: Setting, choice: Choice, folder: Path
) -> Iterator[tuple[str, Flatness, int, dict[str, RunResult]]]:
    """Finished trainings of the chosen methods: name, flatness, seed, and results by split."""
    for name, method in choice.methods.items():
        for flatness in (Plain(), method.flatness or SAM()):
            for seed in range(setting.common.num_seeds):
                runs = list_evaluations(setting, name, method, flatness, seed)
                finished = {
                    split: result
                    for split, run in runs.items()
                    if (result := run.load_result(folder / "runs")) is not None
                }
                if len(finished) == len(runs):
                    yield name, flatness, seed, finished
