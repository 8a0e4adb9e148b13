"""Hyperparameters from validation data, the plain twin's first, and a record of what that cost each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import write_json
from flatbayes.core.spec import short_name, to_spec
from flatbayes.experiments.comparison import Comparison, execute_runs
from flatbayes.experiments.method import Method
from flatbayes.experiments.run import ExperimentRun
from flatbayes.experiments.tuning import is_higher_better
from flatbayes.flatness import Flatness, Plain


@dataclass(frozen=True)
class SelectionTrial:
    """One setting on validation data.

    Attributes:
        method: What the method is called.
        setting: What was tried.
        variant: Whether it was tried plainly or flatly.
        score: Mean of the metric over seeds; None where a run came to nothing.
        is_best: Whether it was the best of its kind.
    """

    method: str
    setting: str
    variant: str
    score: float | None
    is_best: bool = False


def select_methods(
    comparison: Comparison,
    candidates: Mapping[str, Sequence[Method]],
    flatnesses: Sequence[Flatness],
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    metric: str = "nll",
    jobs: int | None = None,
    show_progress: bool | None = None,
) -> list[Method]:
    """For each method the candidate that is best when trained plainly, and then the flatness that suits it best.

    So whatever the twins share is tuned for the plain one, and the flat one has its flatness alone. Only the
    validation part of the data is looked at. Every trial is kept in `selection.json`, with the number that either
    twin had.

    Args:
        comparison: Data, network, common recipe, seeds and number of draws; the rest of it is not used.
        candidates: Settings to choose from, for each name that a method is to have.
        flatnesses: What the flat twin may be.
        folder: Where runs are kept; the same call goes on where it was stopped.
        seeds: Those that are averaged over; by default all of the comparison. With one, the choice is for one split
            of the data alone, as the protocol of the UCI sets has it.
        metric: What decides, in its own direction.
        jobs: Processes; by default one per core, or one if there is a GPU.
        show_progress: Show a progress bar; by default if standard error is a terminal.

    Raises:
        RuntimeError: No candidate of a method came to an end.
    """
    sign = -1 if is_higher_better(metric) else 1
    chosen_seeds = list(range(comparison.num_seeds) if seeds is None else seeds)

    def run_trials(
        settings: Mapping[str, Sequence[tuple[Method, Flatness]]], variant: str
    ) -> dict[str, list[SelectionTrial]]:
        tasks = {
            (name, k): [_make_run(comparison, method, flatness, seed) for seed in chosen_seeds]
            for name, pairs in settings.items()
            for k, (method, flatness) in enumerate(pairs)
        }
        execute_runs([task for group in tasks.values() for task in group], folder / "runs", jobs, show_progress)
        found: dict[str, list[SelectionTrial]] = {}
        for (name, k), group in tasks.items():
            scores = [_read_score(task, folder / "runs", metric) for task in group]
            known = [score for score in scores if score is not None]
            score = fmean(known) if len(known) == len(scores) else None
            method, flatness = settings[name][k]
            found.setdefault(name, []).append(
                SelectionTrial(name, _describe_setting(method, flatness), variant, score)
            )
        return found

    plain = run_trials({name: [(m, Plain()) for m in options] for name, options in candidates.items()}, "plain")
    best = {name: candidates[name][_find_best(name, found, sign)] for name, found in plain.items()}
    flat = run_trials({name: [(method, f) for f in flatnesses] for name, method in best.items()}, "flat")
    chosen = [
        replace(method, flatness=flatnesses[_find_best(name, flat[name], sign)], name=name)
        for name, method in best.items()
    ]
    record = [
        replace(trial, is_best=k == _find_best(name, found, sign))
        for kind in (plain, flat)
        for name, found in kind.items()
        for k, trial in enumerate(found)
    ]
    write_json(
        folder / "selection.json",
        {
            "metric": metric,
            "seeds": chosen_seeds,
            "trials": [asdict(trial) for trial in record],
            "selected_methods": [to_spec(method)["init_args"] for method in chosen],
        },
    )
    return chosen


def _make_run(comparison: Comparison, method: Method, flatness: Flatness, seed: int) -> ExperimentRun:
    return ExperimentRun(
        source=comparison.source,
        model=comparison.model,
        posterior=method.posterior,
        flatness=flatness,
        config=method.apply_overrides(comparison.config),
        seed=seed,
        num_draws=comparison.num_draws,
        split="val",
    )


def _read_score(run: ExperimentRun, folder: Path, metric: str) -> float | None:
    found = run.load_result(folder)
    return None if found is None else found["metrics"][metric]


def _find_best(name: str, trials: Sequence[SelectionTrial], sign: int) -> int:
    scores = [float("inf") if trial.score is None else sign * trial.score for trial in trials]
    if min(scores) == float("inf"):
        raise RuntimeError(f"No setting of {name} came to an end: lower the learning rate, or rho.")
    return scores.index(min(scores))


def _describe_setting(method: Method, flatness: Flatness) -> str:
    changes: dict[str, Any] = to_spec(dict(method.config_overrides))
    shown = [f"{key}={short_name(value) if isinstance(value, dict) else value}" for key, value in changes.items()]
    return ", ".join([short_name(method.posterior), *shown, short_name(flatness)])
