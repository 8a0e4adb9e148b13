"""Bayesian optimization of the hyperparameters of one posterior and its flatness on validation data.

Optuna proposes settings (tree-structured Parzen estimators, Bergstra et al., 2011) and stores the study in a
database, so that it can be stopped, continued, and shared by several processes.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

from rich.progress import track
from torch import nn

from flatbayes.core.console import PlainConsole
from flatbayes.core.files import explain_write_errors, make_folder
from flatbayes.core.names import format_suggestion
from flatbayes.core.randomness import Stream, spawn_seed
from flatbayes.data import make_source
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.experiments.fit_options import FitOptions
from flatbayes.experiments.ranges import (
    Ranges,
    check_ranges,
    default_ranges,
    extend_ranges,
    find_edges,
    find_radius_name,
    is_training_fixed,
    is_whole_number,
    replace_hyperparameters,
)
from flatbayes.experiments.run import ExperimentRun, try_execute_together
from flatbayes.experiments.run_folder import STUDY_FILE
from flatbayes.experiments.tuning_result import TuningResult
from flatbayes.flatness import SAM, Flatness
from flatbayes.metrics import HIGHER_IS_BETTER, METRIC_FAMILIES, MetricFamily
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.training import TrainingConfig, dry_run
from flatbayes.training.arguments import NetworkOptions, resolve_config, resolve_model
from flatbayes.training.recording import Recordings

if TYPE_CHECKING:
    import optuna  # an optional package

COMPARISON_METRICS = ("dee", *METRIC_FAMILIES[MetricFamily.REFERENCE])
"""Metrics that a run alone does not have."""


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
    share_trainings: bool = True,
) -> TuningResult:
    """Run trials until there are `num_trials` of them, those of earlier calls included; and one with radius 0.

    If the radius is tuned, its range grows where the best value is at an edge, and plain training is tried too, with
    the other numbers at their best values. If it has the best score, it is the result.

    Args:
        run: The run to tune; it is evaluated on the validation split.
        ranges: Ranges of the hyperparameters to tune.
        num_trials: Total number of trials.
        num_seeds: Runs of each trial, from the seed of the run on.
        folder: Folder of the runs, and of the study if there is no other storage.
        storage: URL of a database for the study (SQLite, PostgreSQL, MySQL).
        metric: Metric that decides, in its own direction.
        show_progress: Show a progress bar on standard error.
        share_trainings: Whether each seed is trained once where no tuned number changes the training, such as the
            rank and the scale of SWAG; see `tune`.

    Raises:
        ValueError: A name is not that of a hyperparameter, or a range is empty.
        RuntimeError: All trials failed.
        ImportError: Optuna is not installed.

    Examples:
        >>> run = ExperimentRun(source, MLP, SWAG(rank=2), SAM(), config, seed=0)
        >>> ranges = {"flatness.rho": (0.01, 0.5)}
        >>> tuned = tune_hyperparameters(
        ...     run, ranges, num_trials=2, num_seeds=1, folder=Path("runs"), show_progress=False
        ... )
        >>> len(tuned.trials), tuned.best_score <= tuned.plain_score
        (2, True)
    """
    check_ranges(run, ranges)
    recordings: dict[int, Recordings] | None = {} if share_trainings and is_training_fixed(run, ranges) else None
    maximize, radius_name = is_higher_better(metric), find_radius_name(run.flatness)
    grown = [name for name in ranges if name == radius_name]
    make_folder(folder)
    name = _study_name(run, ranges, num_seeds, metric)
    with (
        explain_write_errors(folder),
        _open_study(storage or f"sqlite:///{folder / STUDY_FILE}", name, maximize) as study,
    ):
        steps = track(
            range(num_trials - len(_get_finished_trials(study))),
            "tuning",
            console=PlainConsole(stderr=True),
            disable=not show_progress,
        )
        for _ in steps:
            current = extend_ranges(ranges, _list_trials(study), grown, higher_is_better=maximize)
            study.optimize(
                partial(
                    _score_trial,
                    run=run,
                    ranges=current,
                    num_seeds=num_seeds,
                    folder=folder,
                    metric=metric,
                    recordings=recordings,
                ),
                n_trials=1,
            )
        finished = _get_finished_trials(study)
        if not any(trial.values for trial in finished):
            reason = finished[-1].user_attrs.get("reason", "")
            raise RuntimeError(
                f"All trials failed: lower the learning rate, or the ranges. The last reason: {reason}"
            )
        trials, best_run = _list_trials(study), replace_hyperparameters(run, study.best_params)
        current = extend_ranges(ranges, trials, grown, higher_is_better=maximize)
        tuned = TuningResult(
            best_run, trials, maximize, metric, edges=find_edges(current, trials, higher_is_better=maximize)
        )
        if radius_name not in ranges or radius_name is None:
            return tuned
        plain_run = replace_hyperparameters(best_run, {radius_name: 0.0})
        plain_score, _ = _score_run(plain_run, num_seeds, folder, metric, None)
        tuned = replace(tuned, plain_score=plain_score, has_plain=True)
        return tuned if tuned.flatness_pays else replace(tuned, best_run=plain_run)


def tune(
    model: nn.Module | Callable[..., nn.Module],
    data: Any,
    posterior: Posterior = SWAG(),
    flatness: Flatness = SAM(),
    config: TrainingConfig | None = None,
    *,
    ranges: Ranges | None = None,
    num_trials: int = 20,
    num_seeds: int = 3,
    metric: str = "nll",
    num_draws: int = 30,
    folder: str | Path | None = None,
    storage: str | None = None,
    show_progress: bool | None = None,
    share_trainings: bool = True,
    **options: Unpack[NetworkOptions],
) -> TuningResult:
    """Tune the radius of a flatness, or any numbers of posterior and flatness, on validation data.

    Args:
        model: As for `compare`.
        data: As for `compare`.
        posterior: The posterior.
        flatness: The flatness.
        config: The training configuration; by default that of `fit`.
        ranges: Lowest and highest value of each hyperparameter by name, such as `{"flatness.rho": (0.01, 1)}`; by
            default the radius from a tenth to twenty times its value. The range of the radius grows where the best
            value is at an edge.
        num_trials: Number of settings to try, those of earlier calls with the same folder included. If the radius is
            tuned, plain training is tried in addition, and is the result if it is the best.
        num_seeds: Runs of each setting, averaged.
        metric: Metric on the validation split that decides.
        num_draws: Networks averaged in a prediction.
        folder: Folder of runs and study, in which a further call continues; None keeps nothing.
        storage: URL of a database for the study; by default a file in the folder.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        share_trainings: Whether each seed is trained once where no tuned number changes the training: the rank and
            the scale of SWAG, or the temperature of Laplace with a weight decay. The results are the same without,
            which takes longer; the snapshots of one training per seed are kept in main memory.
        **options: `likelihood`, `output`, `init`, `new_head`, `freeze` and `transform` of `fit`.

    Returns:
        The result; `fit(model, data, result.posterior, result.flatness, config)` uses it.

    Raises:
        ValueError: Model, data, posterior, flatness and configuration do not go together, or a range is not valid.
        RuntimeError: All trials failed.
        ImportError: Optuna is not installed.

    Examples:
        >>> tuned = tune(
        ...     MLP, source, SWAG(rank=2), SAM(), config, num_trials=2, num_seeds=1
        ... )
        >>> fitted = fit(MLP, data, tuned.posterior, tuned.flatness, config)
        >>> tuned.names, len(tuned.trials)
        (['flatness.rho'], 2)
    """
    check_counts(num_trials, num_seeds)
    fit_options = FitOptions.from_keywords(options, tune)
    source = fit_options.apply_task(make_source(data))
    dataset = source.load(0)
    run = ExperimentRun(
        source=source,
        model=resolve_model(model),
        posterior=posterior,
        flatness=flatness,
        config=resolve_config(config, model, fit_options.init),
        seed=0,
        num_draws=num_draws,
        data_fingerprint=compute_fingerprint(dataset),
        model_fingerprint=fit_options.fingerprint_start(model),
        options=fit_options,
    )
    dry_run(run.model, dataset, run.posterior, run.flatness, run.config, **options)
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as place:
        return tune_hyperparameters(
            run,
            default_ranges(run) if ranges is None else ranges,
            num_trials=num_trials,
            num_seeds=num_seeds,
            folder=Path(place),
            storage=storage,
            metric=metric,
            show_progress=sys.stderr.isatty() if show_progress is None else show_progress,
            share_trainings=share_trainings,
        )


def check_counts(num_trials: int, num_seeds: int) -> None:
    """Check the numbers of trials and of runs of each."""
    if num_trials < 1 or num_seeds < 1:
        raise ValueError(f"num_trials and num_seeds must be at least 1, got {num_trials} and {num_seeds}.")


def is_higher_better(metric: str) -> bool:
    """Whether higher values of a metric are better.

    Raises:
        ValueError: The metric is unknown or has no direction.

    Examples:
        >>> is_higher_better("accuracy"), is_higher_better("nll")
        (True, False)
    """
    if metric not in HIGHER_IS_BETTER:
        suggestion = format_suggestion(metric, HIGHER_IS_BETTER)
        names = [name for name in HIGHER_IS_BETTER if name not in COMPARISON_METRICS]
        raise ValueError(f"Unknown metric {metric!r}. {suggestion}Known: {', '.join(names)}.")
    return HIGHER_IS_BETTER[metric]


def _study_name(run: ExperimentRun, ranges: Ranges, num_seeds: int, metric: str) -> str:
    """Hash of everything that determines the scores."""
    sorted_ranges = {name: list(ends) for name, ends in sorted(ranges.items())}
    key = [replace(run, split="val").cache_key(), metric, num_seeds, sorted_ranges]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _score_trial(
    trial: "optuna.Trial",
    run: ExperimentRun,
    ranges: Ranges,
    num_seeds: int,
    folder: Path,
    metric: str,
    recordings: dict[int, Recordings] | None,
) -> float:
    """Mean of the metric over seeds at the values that Optuna proposes."""
    import optuna

    values: dict[str, float] = {}
    for name, (low, high) in ranges.items():
        if is_whole_number(run, name):
            values[name] = trial.suggest_int(name, int(low), int(high), log=True)
        else:
            values[name] = trial.suggest_float(name, low, high, log=True)
    score, reason = _score_run(replace_hyperparameters(run, values), num_seeds, folder, metric, recordings)
    if score is None:
        trial.set_user_attr("reason", reason)
        raise optuna.TrialPruned(reason)
    return score


def _score_run(
    run: ExperimentRun, num_seeds: int, folder: Path, metric: str, recordings: dict[int, Recordings] | None
) -> tuple[float | None, str]:
    """Mean of the metric over seeds; None and the reason if a training failed."""
    scores = []
    for seed in range(run.seed, run.seed + num_seeds):
        seed_run = replace(run, seed=seed, split="val")
        result, reason = seed_run.load_result(folder / "runs"), None
        if result is None:  # whole numbers are proposed again
            recorded = None if recordings is None else recordings.setdefault(seed, {})
            ((_, reason),) = try_execute_together([seed_run], folder / "runs", recorded)
            result = seed_run.load_result(folder / "runs")
        if result is not None and metric not in result.metrics:
            raise ValueError(f"These data have no metric {metric!r}; they have {', '.join(result.metrics)}.")
        score = None if result is None else result.metrics[metric]
        if score is None:
            return None, reason or f"{metric} was not a number"
        scores.append(score)
    return fmean(scores), ""


def _list_trials(study: "optuna.Study") -> list[dict[str, float | None]]:
    finished = _get_finished_trials(study)
    return [{**trial.params, "score": trial.values[0] if trial.values else None} for trial in finished]


def _get_finished_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))  # not the interrupted ones


@contextmanager
def _open_study(storage: str, name: str, maximize: bool) -> "Iterator[optuna.Study]":
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Tuning needs Optuna: pip install 'flatbayes[tune]'.") from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = optuna.storages.RDBStorage(storage)
    try:
        direction = optuna.study.StudyDirection.MAXIMIZE if maximize else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(storage=database, study_name=name, direction=direction, load_if_exists=True)
        study.sampler = optuna.samplers.TPESampler(
            seed=spawn_seed(Stream.TUNING, len(study.trials)) % 2**32
        )  # another seed for every call, or it would propose the same again
        yield study
    finally:
        database.remove_session()
        database.engine.dispose()
        optuna.logging.set_verbosity(verbosity)
