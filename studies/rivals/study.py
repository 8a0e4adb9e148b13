"""Trainings of the study and their summary.

For every task, method by method: three or four learning rates on validation data with seed 0, and the best one on
test data with seed 0; then all methods on test data, seed by seed. Every method has the same number of gradients of a
batch, early stopping aside.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from flatbayes.core.spec import short_name
from flatbayes.data import CIFAR10, DataSource, DataSplits, Digits
from flatbayes.experiments import ExperimentRun, RunResult, compare_pairs
from flatbayes.experiments.calibrated_nll import add_ensemble_equivalents
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.flatness import Plain
from flatbayes.models import MLP, ConvNet
from studies.rivals.methods import RHO, Entry, list_entries
from studies.selection import average_metrics, execute_named, load_run, name_file, select_setting

METRICS = ("accuracy", "nll", "nll_calibrated", "ece", "brier", "dee")
SINGLE_NETWORK = "SGD"
BASELINE = "flat SWAG, default"
"""The method that all others are compared with."""


@dataclass(frozen=True)
class Task:
    """A data set with its network.

    Attributes:
        title: Title for the tables.
        source: Source of the data.
        model: Builds the network.
        budget: Gradients of a batch of every method.
        num_data: Training examples.
        batch_size: Examples of a step.
        num_seeds: Seeds of the evaluation.
        lr_factors: Candidates for the learning rate of every method, as multiples of the published or default one.
        num_draws: Networks averaged in a prediction.
    """

    title: str
    source: DataSource
    model: Callable[..., nn.Module]
    budget: int
    num_data: int
    batch_size: int
    num_seeds: int
    lr_factors: Sequence[float] = (1.0, 0.3, 3.0)
    num_draws: int = 30

    @property
    def entries(self) -> list[Entry]:
        """The methods."""
        return list_entries(self.num_data)

    def make_run(self, entry: Entry, factor: float, seed: int) -> ExperimentRun:
        """One training of a method with a multiple of its learning rate."""
        return ExperimentRun(
            source=self.source,
            model=self.model,
            posterior=entry.posterior,
            flatness=entry.flatness,
            config=entry.make_config(factor, self.budget, self.num_data, self.batch_size),
            seed=seed,
            num_draws=self.num_draws,
            posterior_name=entry.name,
        )


@dataclass(frozen=True, kw_only=True)
class FewTestImages(CIFAR10):
    """CIFAR-10 with a part of its test images, which the shared file has in random order.

    Attributes:
        num_test: Number of test images.
    """

    num_test: int = 2000

    def load(self, seed: int) -> DataSplits:
        """The splits of a seed; the test images are the same for all."""
        data = super().load(seed)
        return replace(data, test=data.test.take(torch.arange(self.num_test)))


TASKS = {
    "digits": Task(
        "digits, 500 images, MLP 64-200-10",
        Digits(train_size=500),
        partial(MLP, hidden=(200,)),
        budget=1600,
        num_data=500,
        batch_size=50,
        num_seeds=5,
        lr_factors=(1.0, 0.3, 3.0, 10.0),
    ),
    "cifar10": Task(
        "CIFAR-10, 1,000 images, ConvNet of width 8",
        FewTestImages(train_size=1000, val_size=500, flip=False, pad=0),
        partial(ConvNet, width=8),
        budget=600,
        num_data=1000,
        batch_size=50,
        num_seeds=3,
        num_draws=10,
    ),
}


def run_task(name: str, folder: Path) -> Iterator[str]:
    """Select the learning rates and train, and yield what is finished; a stopped call goes on."""
    task = TASKS[name]
    for seed in range(task.num_seeds):
        for entry in task.entries:
            factor, _ = select_factor(task, entry, folder)
            if factor is not None:
                execute_named({name_run(folder, entry, factor, seed): task.make_run(entry, factor, seed)})
                yield f"{name} seed {seed}: {entry.name}, learning rate x {factor:g}"


def name_run(folder: Path, entry: Entry, factor: float, seed: int) -> Path:
    """File of a run on test data."""
    return name_file(folder / "runs", entry.name, f"{factor:g}", seed)


def select_factor(
    task: Task, entry: Entry, folder: Path, *, execute: bool = True
) -> tuple[float | None, Sequence[float | None]]:
    """The multiple of the learning rate with the lowest validation NLL, and the NLL of each.

    Args:
        task: The task.
        entry: The method; the long ensemble has the learning rate of its single network.
        folder: Folder of the runs.
        execute: Execute missing runs.

    Returns:
        The multiple, None where all runs failed or are missing.
    """
    if entry.group == "reference":
        entry = next(other for other in task.entries if other.name == SINGLE_NETWORK)
    candidates = {
        name_file(folder / "selection", entry.name, f"{factor:g}"): task.make_run(entry, factor, 0)
        for factor in task.lr_factors
    }
    best, scores = select_setting(candidates, execute=execute)
    return (None if best is None else task.lr_factors[best]), scores


def summarize_task(name: str, folder: Path) -> dict[str, Any]:
    """Summary of the finished runs of a task."""
    task = TASKS[name]
    factors = {entry.name: select_factor(task, entry, folder, execute=False) for entry in task.entries}
    results = [
        result
        for entry in task.entries
        if (factor := factors[entry.name][0]) is not None
        for seed in range(task.num_seeds)
        if (result := load_run(name_run(folder, entry, factor, seed))) is not None
    ]
    completed, _ = add_ensemble_equivalents(results, short_name(Plain()))
    by_name = {entry.name: [run for run in completed if run.posterior == entry.name] for entry in task.entries}
    rows = [
        summarize_entry(entry, by_name[entry.name], by_name[BASELINE])
        | {"lr_factor": factors[entry.name][0], "val_nll": factors[entry.name][1]}
        for entry in task.entries
        if by_name[entry.name]
    ]
    return {
        "data": name,
        "title": task.title,
        "budget": task.budget,
        "rho": RHO,
        "lr_factors": task.lr_factors,
        "planned_seeds": task.num_seeds,
        "num_draws": task.num_draws,
        "planned_runs": len(task.entries) * task.num_seeds,
        "finished_runs": len(results),
        "rows": rows,
        "pairs": {
            text: compare_runs(by_name[first], by_name[second])
            for text, first, second in (
                ("SVGD minus Ensemble", "SVGD", "Ensemble"),
                ("flat SVGD minus SVGD", "flat SVGD", "SVGD"),
                ("FHBI minus SVGD", "FHBI", "SVGD"),
                ("flat IVON minus IVON", "flat IVON", "IVON"),
                ("flat SWAG minus SWAG", "flat SWAG", "SWAG"),
                ("flat Ensemble minus Ensemble", "flat Ensemble", "Ensemble"),
                ("SAM minus SGD", "SAM", "SGD"),
            )
        },
    }


def summarize_entry(entry: Entry, runs: Sequence[RunResult], baseline: Sequence[RunResult]) -> dict[str, Any]:
    """Mean and standard deviation of the metrics of a method, its cost, and its difference from the baseline."""
    return {
        "method": entry.name,
        "group": entry.group,
        "posterior": short_name(entry.posterior),
        "flatness": short_name(entry.flatness),
        "seeds": len(runs),
        "metrics": average_metrics(runs, METRICS),
        "gradients": fmean(run.cost.gradients or 0.0 for run in runs),
        "seconds": fmean(run.cost.train_seconds or 0.0 for run in runs),
        "against_baseline": compare_runs(runs, baseline),
    }


def compare_runs(first: Sequence[RunResult], second: Sequence[RunResult]) -> dict[str, Any]:
    """Paired differences of NLL, raw and calibrated, first minus second; negative where the first is better."""
    differences: dict[str, Any] = {}
    for metric in ("nll", "nll_calibrated"):
        by_seed = {run.seed: run.metrics.get(metric) for run in second}
        pairs = [
            (other, value)
            for run in first
            if (value := run.metrics.get(metric)) is not None and (other := by_seed.get(run.seed)) is not None
        ]
        if pairs and first is not second:
            comparison = compare_pairs(*zip(*pairs, strict=True), higher_is_better=False)
            differences[metric] = {"difference": comparison.difference, "interval": comparison.interval}
    return differences


def describe_study(folder: Path) -> dict[str, Any]:
    """Summaries of all tasks that have finished runs."""
    summaries = [summarize_task(name, folder / name) for name in TASKS]
    return {"tasks": [s for s in summaries if s["rows"]], "environment": describe_environment()}
