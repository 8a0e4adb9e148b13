"""Hyperparameters of one posterior and its flatness, by Bayesian optimisation on validation data.

Optuna proposes (tree-structured Parzen estimators, Bergstra et al., 2011) and keeps the study in a database, so that
it may be stopped, continued, and shared by several processes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from flatbayes.comparison.task import Task
from flatbayes.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    import optuna

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value by name, such as `flatness.rho` or `posterior.temperature`; searched on a log scale."""

WIDE = (0.1, 20.0)
"""The usual range of a radius, in units of the flatness's own."""


@dataclass(frozen=True)
class Tuned:
    """What was tried.

    Attributes:
        best: The task with the best settings, for its first seed.
        trials: Values tried by name, and under `score` the mean over seeds, in the order of trying; None where
            training came to nothing.
        higher_is_better: Direction of the score.
    """

    best: Task
    trials: list[dict[str, float | None]]
    higher_is_better: bool = False


def usual_ranges(task: Task) -> Ranges:
    """The radius of the task's flatness, from a tenth to twenty times what it is.

    Raises:
        ValueError: The flatness has no radius.
    """
    rho = getattr(task.flatness, "rho", None)
    if not rho:
        raise ValueError(f"{task.flatness} has no radius to tune: choose another flatness, or say what to tune.")
    return {"flatness.rho": (WIDE[0] * rho, WIDE[1] * rho)}


def tune(
    task: Task,
    ranges: Ranges,
    *,
    trials: int,
    seeds: int,
    folder: Path,
    storage: str | None = None,
    metric: str = "nll",
    progress: bool = True,
) -> Tuned:
    """Try settings until there are `trials` of them, those of earlier calls included.

    Args:
        task: What is tuned; it is evaluated on the validation part.
        ranges: What may change.
        trials: Settings in all.
        seeds: Runs of each, from the task's seed on.
        folder: Where runs are kept, and the study if there is no other storage.
        storage: URL of a database for the study (SQLite, PostgreSQL, MySQL).
        metric: What decides, in its own direction.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: There is nothing to change under a name, or a range is none.
        RuntimeError: Nothing that was tried came to an end.
        ImportError: Optuna is not installed.
    """
    check_ranges(task, ranges)
    upwards = direction(metric)
    folder.mkdir(parents=True, exist_ok=True)
    asked = [replace(task, part="val").key(), metric, seeds, {k: list(ends) for k, ends in sorted(ranges.items())}]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    with _study(storage or f"sqlite:///{folder / 'study.db'}", name, upwards) as study:
        steps = track(
            range(trials - len(_ended(study))), "tuning", console=Console(stderr=True), disable=not progress
        )
        for _ in steps:
            study.optimize(lambda trial: _score(trial, task, ranges, seeds, folder, metric), n_trials=1)
        ended = _ended(study)
        if not any(trial.values for trial in ended):
            reason = ended[-1].user_attrs.get("reason", "")
            raise RuntimeError(
                "Nothing that was tried came to an end: lower the learning rate, or the ranges. The last one said: "
                f"{reason}"
            )
        found: list[dict[str, float | None]] = [
            {**trial.params, "score": trial.values[0] if trial.values else None} for trial in ended
        ]
        return Tuned(changed(task, study.best_params), found, upwards)


def check_ranges(task: Task, ranges: Ranges) -> None:
    """Refuse what cannot be tuned.

    Raises:
        ValueError: There is no such number, or its range is none.
    """
    if not ranges:
        raise ValueError("There is nothing to tune: give at least one range, such as flatness.rho.")
    for name, (low, high) in ranges.items():
        owner, _, attribute = name.partition(".")
        if owner not in ("posterior", "flatness"):
            raise ValueError(f"{name!r} is neither of the posterior nor of the flatness, such as flatness.rho.")
        now = {f.name: getattr(getattr(task, owner), f.name) for f in fields(getattr(task, owner))}
        known = [field for field, value in now.items() if value is None or _is_number(value)]
        if attribute not in known:
            raise ValueError(f"{getattr(task, owner)} has no number {attribute!r}; it has {', '.join(known)}.")
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"The range of {name} must satisfy 0 < low <= high, got {low} and {high}.")


def direction(metric: str) -> bool:
    """Whether higher is better.

    Raises:
        ValueError: It is no metric with a better side.
    """
    if metric not in HIGHER_IS_BETTER:
        raise ValueError(f"Unknown metric {metric!r}. Known: {', '.join(HIGHER_IS_BETTER)}.")
    return HIGHER_IS_BETTER[metric]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def changed(task: Task, values: Mapping[str, float]) -> Task:
    """The task with these values, each under the name of its owner and field."""
    for name, value in values.items():
        owner, _, attribute = name.partition(".")
        task = replace(task, **{owner: replace(getattr(task, owner), **{attribute: value})})
    return task


def _score(trial: "optuna.Trial", task: Task, ranges: Ranges, seeds: int, folder: Path, metric: str) -> float:
    import optuna

    values: dict[str, float] = {}
    for name, (low, high) in ranges.items():
        owner, _, attribute = name.partition(".")
        if isinstance(getattr(getattr(task, owner), attribute), int):
            values[name] = trial.suggest_int(name, int(low), int(high), log=True)
        else:
            values[name] = trial.suggest_float(name, low, high, log=True)
    scores = []
    for seed in range(task.seed, task.seed + seeds):
        one = replace(changed(task, values), seed=seed, part="val")
        _, reason = one.attempt(folder / "runs")
        found: dict[str, Any] | None = one.kept(folder / "runs")
        if found is not None and metric not in found["metrics"]:
            raise ValueError(f"These data have no metric {metric!r}; they have {', '.join(found['metrics'])}.")
        if found is None or found["metrics"][metric] is None:
            trial.set_user_attr("reason", reason or f"{metric} was not a number")
            raise optuna.TrialPruned(reason)
        scores.append(found["metrics"][metric])
    return fmean(scores)


def _ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))  # not those that were interrupted


@contextmanager
def _study(storage: str, name: str, upwards: bool) -> "Iterator[optuna.Study]":
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Tuning needs Optuna: pip install 'flatbayes[tune]'.") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = optuna.storages.RDBStorage(storage)
    try:
        towards = optuna.study.StudyDirection.MAXIMIZE if upwards else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(storage=database, study_name=name, direction=towards, load_if_exists=True)
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # or it would propose the same again
        yield study
    finally:
        database.remove_session()
        database.engine.dispose()
        optuna.logging.set_verbosity(before)
