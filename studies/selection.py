"""Runs of a study in files with names, and the selection of a setting on validation data.

The cache of `flatbayes.experiments` has keys that change with every new option of flatbayes. A study
that goes on in a later session keeps what it has: delete a file to run it again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from flatbayes.core.files import read_json, write_json
from flatbayes.experiments import ExperimentRun, RunResult
from flatbayes.experiments.run import execute_together, group_runs


def name_file(folder: Path, *words: object) -> Path:
    """Path of the result of a run, by the words that tell it from others, such as a method and a seed."""
    return folder / f"{'_'.join(re.sub(r'[^A-Za-z0-9.]+', '-', str(word)) for word in words)}.json"


def load_run(path: Path) -> RunResult | None:
    """A finished run; None where it is missing or has failed."""
    data = read_json(path) if path.is_file() else {"error": "missing"}
    return None if isinstance(data, dict) and "error" in data else RunResult.from_dict(data)


def execute_named(runs: Mapping[Path, ExperimentRun]) -> None:
    """Execute the runs without a file, one after the other; those that are trained alike share a training.

    Args:
        runs: Runs by the file of their results. The file of a run that fails has its message.
    """
    missing = {path: run for path, run in runs.items() if not path.is_file()}
    paths = {id(run): path for path, run in missing.items()}
    for group in group_runs([*missing.values()]):
        for run, result in zip(group, execute_together(group), strict=True):
            if isinstance(result, RunResult):
                write_json(paths[id(run)], result.to_dict())
            elif isinstance(result, RuntimeError | ValueError):
                write_json(paths[id(run)], {"error": str(result)})
            else:
                raise result


def average_metrics(runs: Sequence[RunResult], names: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation of the metrics that runs have; None for the latter with one value."""
    metrics: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [value for run in runs if (value := run.metrics.get(name)) is not None]
        if values:
            metrics[name] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
    return metrics


def select_setting(
    candidates: Mapping[Path, ExperimentRun], *, execute: bool = True
) -> tuple[int | None, Sequence[float | None]]:
    """The candidate with the lowest validation NLL.

    Args:
        candidates: Runs of a method by the file of their results on validation data.
        execute: Execute those without a file; otherwise they count as failed.

    Returns:
        The index of the best candidate, None where all failed; and the NLL of each, None for one that failed.
    """
    if execute:
        execute_named({path: replace(run, split="val") for path, run in candidates.items()})
    results = map(load_run, candidates)
    scores = [None if result is None else result.metrics.get("nll") for result in results]
    finite = {index: score for index, score in enumerate(scores) if score is not None}
    return (min(finite, key=lambda index: finite[index]) if finite else None), scores
