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

from flatbayes.experiments.run import ExperimentRun
from flatbayes.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    import optuna

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value by name, such as `flatness.rho` or `posterior.temperature`; searched on a log scale."""

RHO_RANGE_FACTORS = (0.1, 20.0)
"""The usual range of a radius, in units of the flatness's own."""


@dataclass(frozen=True)
class TuningResult:
    """What was tried.

    Attributes:
        best_run: The task with the best settings, for its first seed.
        trials: Values tried by name, and under `score` the mean over seeds, in the order of trying; None where
            training came to nothing.
        higher_is_better: Direction of the score.
    """

    best_run: ExperimentRun
    trials: list[dict[str, float | None]]
    higher_is_better: bool = False


def default_ranges(run: ExperimentRun) -> Ranges:
    """The radius of the task's flatness, from a tenth to twenty times what it is.

    Raises:
        ValueError: The flatness has no radius.
    """
    rho = getattr(run.flatness, "rho", None)
    if not rho:
        raise ValueError(f"{run.flatness} has no radius to tune: choose another flatness, or say what to tune.")
    return {"flatness.rho": (RHO_RANGE_FACTORS[0] * rho, RHO_RANGE_FACTORS[1] * rho)}


def tune_hyperparameters(
    run: ExperimentRun,
    ranges: Ranges,
    *,
    num_trials: int,
    num_seeds: int,
    folder: Path,
    storage: str | None = None,
    metric: str = "nll",
    show_progress: bool = True,
) -> TuningResult:
    """Try settings until there are `trials` of them, those of earlier calls included.

    Args:
        run: What is tuned; it is evaluated on the validation part.
        ranges: What may change.
        num_trials: Settings in all.
        num_seeds: Runs of each, from the task's seed on.
        folder: Where runs are kept, and the study if there is no other storage.
        storage: URL of a database for the study (SQLite, PostgreSQL, MySQL).
        metric: What decides, in its own direction.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: There is nothing to change under a name, or a range is none.
        RuntimeError: Nothing that was tried came to an end.
        ImportError: Optuna is not installed.
    """
    check_ranges(run, ranges)
    upwards = is_higher_better(metric)
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        replace(run, split="val").cache_key(),
        metric,
        num_seeds,
        {k: list(ends) for k, ends in sorted(ranges.items())},
    ]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    with _open_study(storage or f"sqlite:///{folder / 'study.db'}", name, upwards) as study:
        steps = track(
            range(num_trials - len(_get_finished_trials(study))),
            "tuning",
            console=Console(stderr=True),
            disable=not show_progress,
        )
        for _ in steps:
            study.optimize(lambda trial: _score_trial(trial, run, ranges, num_seeds, folder, metric), n_trials=1)
        ended = _get_finished_trials(study)
        if not any(trial.values for trial in ended):
            reason = ended[-1].user_attrs.get("reason", "")
            raise RuntimeError(
                "Nothing that was tried came to an end: lower the learning rate, or the ranges. The last one said: "
                f"{reason}"
            )
        found: list[dict[str, float | None]] = [
            {**trial.params, "score": trial.values[0] if trial.values else None} for trial in ended
        ]
        return TuningResult(replace_hyperparameters(run, study.best_params), found, upwards)


def check_ranges(run: ExperimentRun, ranges: Ranges) -> None:
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
        now = {f.name: getattr(getattr(run, owner), f.name) for f in fields(getattr(run, owner))}
        known = [field for field, value in now.items() if value is None or _is_number(value)]
        if attribute not in known:
            raise ValueError(f"{getattr(run, owner)} has no number {attribute!r}; it has {', '.join(known)}.")
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"The range of {name} must satisfy 0 < low <= high, got {low} and {high}.")


def is_higher_better(metric: str) -> bool:
    """Whether higher is better.

    Raises:
        ValueError: It is no metric with a better side.
    """
    if metric not in HIGHER_IS_BETTER:
        raise ValueError(f"Unknown metric {metric!r}. Known: {', '.join(HIGHER_IS_BETTER)}.")
    return HIGHER_IS_BETTER[metric]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def replace_hyperparameters(run: ExperimentRun, values: Mapping[str, float]) -> ExperimentRun:
    """The task with these values, each under the name of its owner and field."""
    for name, value in values.items():
        owner, _, attribute = name.partition(".")
        run = replace(run, **{owner: replace(getattr(run, owner), **{attribute: value})})
    return run


def _score_trial(
    trial: "optuna.Trial", run: ExperimentRun, ranges: Ranges, num_seeds: int, folder: Path, metric: str
) -> float:
    import optuna

    values: dict[str, float] = {}
    for name, (low, high) in ranges.items():
        owner, _, attribute = name.partition(".")
        if isinstance(getattr(getattr(run, owner), attribute), int):
            values[name] = trial.suggest_int(name, int(low), int(high), log=True)
        else:
            values[name] = trial.suggest_float(name, low, high, log=True)
    scores = []
    for seed in range(run.seed, run.seed + num_seeds):
        one = replace(replace_hyperparameters(run, values), seed=seed, split="val")
        _, reason = one.try_execute(folder / "runs")
        found: dict[str, Any] | None = one.load_result(folder / "runs")
        if found is not None and metric not in found["metrics"]:
            raise ValueError(f"These data have no metric {metric!r}; they have {', '.join(found['metrics'])}.")
        if found is None or found["metrics"][metric] is None:
            trial.set_user_attr("reason", reason or f"{metric} was not a number")
            raise optuna.TrialPruned(reason)
        scores.append(found["metrics"][metric])
    return fmean(scores)


def _get_finished_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))  # not those that were interrupted


@contextmanager
def _open_study(storage: str, name: str, maximize: bool) -> "Iterator[optuna.Study]":
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Tuning needs Optuna: pip install 'flatbayes[tune]'.") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = optuna.storages.RDBStorage(storage)
    try:
        towards = optuna.study.StudyDirection.MAXIMIZE if maximize else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(storage=database, study_name=name, direction=towards, load_if_exists=True)
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # or it would propose the same again
        yield study
    finally:
        database.remove_session()
        database.engine.dispose()
        optuna.logging.set_verbosity(before)
