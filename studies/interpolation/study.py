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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.spec import short_name, to_spec
from flatbayes.experiments import EvaluationConfig, ExperimentRun, Method, RunResult, SelectionTrial, execute_runs
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.posteriors import Ensemble
from flatbayes.training.identity import describe_training
from studies.interpolation.settings import Setting


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
    """The evaluations of one training by split."""
    run = replace(setting.common.make_run(method, flatness, seed), posterior_name=name)
    evaluations = {
        "test": EvaluationConfig(calibration=True),
        "val": EvaluationConfig(),
        "train": setting.sharpness if name in setting.measured else EvaluationConfig(),
    }
    return {split: replace(run, split=split, evaluations=evaluations[split]) for split in evaluations}


def list_pairs(
    setting: Setting, settings: Mapping[str, Sequence[tuple[Method, Flatness]]], seeds: Sequence[int]
) -> list[ExperimentRun]:
    """The runs of methods with flatnesses, the seeds outermost, so that an interrupted study has complete seeds."""
    return [
        run
        for seed in seeds
        for name, pairs in settings.items()
        for method, flatness in pairs
        for run in list_evaluations(setting, name, method, flatness, seed).values()
    ]


def read_score(setting: Setting, name: str, method: Method, flatness: Flatness, folder: Path) -> float | None:
    """Validation NLL averaged over the seeds of the selection; infinite where a training failed, None if it is missing."""
    seeds = range(setting.num_selection_seeds)
    results = [
        list_evaluations(setting, name, method, flatness, seed)["val"].load_result(folder / "runs") for seed in seeds
    ]
    finished = [result for result in results if result is not None]
    scores = [result.metrics["nll"] for result in finished]
    return None if len(finished) < len(seeds) else fmean(math.inf if s is None else s for s in scores)


def select_plain(setting: Setting, folder: Path) -> dict[str, tuple[Method, list[SelectionTrial]]]:
    """For every method with finished trials, the candidate with the lowest validation NLL of plain training."""
    selected = {}
    for name, candidates in setting.candidates.items():
        scores = {i: read_score(setting, name, m, Plain(), folder) for i, m in enumerate(candidates)}
        finite = {i: score for i, score in scores.items() if score is not None}
        if finite:
            best = min(finite, key=finite.__getitem__)
            trials = [
                SelectionTrial(name, describe_method(candidates[i]), "plain", score, i == best)
                for i, score in finite.items()
            ]
            selected[name] = (candidates[best], trials)
    return selected


def select_radii(setting: Setting, folder: Path) -> Choice:
    """For every training with finished trials, the radius that is best for the methods that share it."""
    plain = select_plain(setting, folder)
    scores = {
        (name, rho): score
        for name, (method, _) in plain.items()
        for rho in setting.radii
        if (score := read_score(setting, name, method, SAM(rho=rho), folder)) is not None
    }
    methods, trials, unpaid = {}, [t for _, group in plain.values() for t in group], []
    for names in group_methods(setting, {name: method for name, (method, _) in plain.items()}).values():
        radii = [rho for rho in setting.radii if all((name, rho) in scores for name in names)]
        if not radii:
            continue
        means = {rho: fmean(scores[name, rho] for name in names) for rho in radii}
        best = min(means, key=means.__getitem__)
        for name in names:
            methods[name] = replace(plain[name][0], flatness=SAM(rho=best), name=name)
            trials += [
                SelectionTrial(name, short_name(SAM(rho=rho)), "flat", scores[name, rho], rho == best) for rho in radii
            ]
            plain_score = min(t.score for t in plain[name][1] if t.score is not None)
            if scores[name, best] >= plain_score:
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


def describe_method(method: Method) -> str:
    """Posterior and overrides in one line."""
    overrides: dict[str, Any] = to_spec(dict(method.config_overrides))
    texts = [f"{key}={short_name(value) if isinstance(value, dict) else value}" for key, value in overrides.items()]
    return ", ".join([short_name(method.posterior), *texts])


def run_setting(setting: Setting, folder: Path, methods: Sequence[str] | None = None) -> list[str]:
    """Execute what is missing, in the order of the module's docstring, and return the failures.

    Args:
        setting: The setting.
        folder: Folder of its runs.
        methods: Names of the methods to run, by default all.
    """
    if methods is not None:
        setting = replace(setting, candidates={n: c for n, c in setting.candidates.items() if n in methods})
    setting = replace(setting, common=setting.common.with_fingerprints())
    seeds, failures = range(setting.common.num_seeds), []
    selection_seeds = seeds[: setting.num_selection_seeds]

    def execute(pairs: Mapping[str, Sequence[tuple[Method, Flatness]]], seeds: Sequence[int]) -> None:
        print(time.strftime("%H:%M:%S"), setting.name, "seeds", list(seeds), flush=True)
        runs = list_pairs(setting, pairs, seeds)
        failures.extend(execute_runs(runs, folder / "runs", jobs=1, show_progress=False))

    execute({name: [(m, Plain()) for m in group] for name, group in setting.candidates.items()}, selection_seeds)
    plain = select_plain(setting, folder)
    for rho in setting.radii:
        execute({name: [(method, SAM(rho=rho))] for name, (method, _) in plain.items()}, selection_seeds)
    chosen = select_radii(setting, folder).methods
    for seed in seeds[setting.num_selection_seeds :]:
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
                results = {split: run.load_result(folder / "runs") for split, run in runs.items()}
                finished = {split: result for split, result in results.items() if result is not None}
                if len(finished) == len(runs):
                    yield name, flatness, seed, finished
