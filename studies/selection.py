"""Selection of a setting for every method on validation data, where methods are single runs and no pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatbayes.experiments import ExperimentRun, execute_runs


def select_settings(
    candidates: Mapping[str, Sequence[ExperimentRun]], folder: Path, num_jobs: int | None = 1, *, run: bool = True
) -> tuple[dict[str, int], dict[str, Any]]:
    """The candidate with the lowest validation NLL of every method.

    Args:
        candidates: Runs by method; the same call continues where it was stopped.
        folder: Folder of the results.
        num_jobs: Processes.
        run: Execute missing runs; otherwise methods with a missing one, of which nothing is known, are left out.

    Returns:
        The index of the best candidate by method, and a record: the NLL of every candidate, None for one that failed,
        and the reasons of the failures. A method all of whose candidates failed has no index.
    """
    runs = {name: [replace(r, split="val", posterior_name=None) for r in group] for name, group in candidates.items()}
    failures = execute_runs([r for group in runs.values() for r in group], folder, num_jobs) if run else []
    results = {name: [r.load_result(folder) for r in group] for name, group in runs.items()}
    scores = {
        name: [None if result is None else result.metrics.get("nll") for result in group]
        for name, group in results.items()
    }
    best = {
        name: min(range(len(group)), key=lambda index: _replace_missing(group[index]))
        for name, group in scores.items()
        if any(score is not None for score in group)
    }
    return best, {"val_nll": scores, "selected": best, "failures": failures}


def _replace_missing(score: float | None) -> float:
    return float("inf") if score is None else score
