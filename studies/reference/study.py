"""Distance of every posterior to the exact one, plain and sharpness-aware.

For a small network on each data set the exact posterior is sampled, plain and with a radius, by full-batch MCLMC.
Every posterior that flatbayes exports is trained with Plain and with SAM of this radius, with the same prior,
temperature 1 and number of steps. Its learning rate is selected on validation data, by the NLL of plain training,
from equally many multiples of its default. All seeds have the same data: they differ in initial weights, batches and
noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

import flatbayes.posteriors
from flatbayes import MLP, UCI, DataSource, Digits, Ensemble, Posterior, TrainingConfig
from flatbayes.data import DataSplits, make_source
from flatbayes.experiments import Comparison, Method, RunResult, compare_pairs, select_methods
from flatbayes.experiments.references import ReferenceFile
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.flatness import SAM
from flatbayes.metrics import classification_metrics
from flatbayes.posteriors import MAP
from flatbayes.reference import Reference, ReferenceConfig, sample_reference
from flatbayes.training import dry_run

LR_FACTORS = (0.3, 1.0, 3.0, 10.0)
"""Candidates for the learning rate, as multiples of the posterior's default."""
NUM_MEMBERS = 5
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "Ensemble": [{"size": NUM_MEMBERS}],
    "Laplace": [{"structure": "last_layer"}, {"structure": "kron"}],
    "MCDropout": [{"rate": 0.1}],
    "SWAG": [{"scale": 0.5}, {"scale": 1.0}],
}
"""Options of posteriors that have no default, or more than one setting of interest."""


@dataclass(frozen=True)
class Task:
    """A data set with its network and its density.

    Attributes:
        title: Title for the tables.
        source: Source of the data, of which the splits of seed 0 are used.
        model: Builds the network.
        prior_precision: Precision of the prior.
        rho: Radius of the sharpness-aware posterior.
        epochs: Epochs of every training.
    """

    title: str
    source: DataSource
    model: partial[nn.Module]
    prior_precision: float
    rho: float
    epochs: int = 60


TASKS = {
    "digits": Task("digits, 500 images, MLP 64-50-10", Digits(train_size=500), partial(MLP, hidden=(50,)), 10.0, 0.1),
    "energy": Task(
        "UCI energy, MLP 8-50-1", UCI(name="energy"), partial(MLP, hidden=(50,), constant_scale=True), 1.0, 0.01
    ),
}
REFERENCES = {
    "plain": ReferenceConfig(num_steps=5000, num_tuning_steps=1500),
    "flat": ReferenceConfig(num_steps=20_000, num_tuning_steps=3000, num_descent_steps=200),
}
"""Chains of the flat reference mix more slowly, and a step of them takes four times as many gradients."""


def load_references(task: Task, data: DataSplits, folder: Path) -> dict[str, Path]:
    """Files of the plain and the sharpness-aware reference, which are sampled where they are missing."""
    paths = {}
    for name, rho in (("plain", 0.0), ("flat", task.rho)):
        paths[name] = folder / f"{name}.safetensors"
        config = replace(REFERENCES[name], prior_precision=task.prior_precision, rho=rho)
        if not paths[name].exists() or Reference.load(paths[name]).config != config:
            sample_reference(task.model, data, config).save(paths[name])
    return paths


def list_posteriors(prior_precision: float) -> dict[str, Posterior]:
    """Every exported posterior by its label, with this prior and temperature 1."""
    posteriors: dict[str, Posterior] = {}
    for name in flatbayes.posteriors.__all__:
        kind = getattr(flatbayes.posteriors, name)
        if not (isinstance(kind, type) and issubclass(kind, Posterior)) or kind is Posterior:
            continue
        for options in VARIANTS.get(name, [{}]):
            names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
            arguments = dict(options) | ({"prior_precision": prior_precision} if "prior_precision" in names else {})
            if kind is Ensemble:
                arguments["member"] = MAP(prior_precision=prior_precision)
            label = name if len(VARIANTS.get(name, [{}])) == 1 else f"{name} {'/'.join(map(str, options.values()))}"
            posteriors[label] = kind(**arguments)
    return posteriors


def make_candidates(posterior: Posterior, label: str, prior_precision: float, num_data: int) -> list[Method]:
    """The posterior with each learning rate; a posterior without a prior of its own has a weight decay."""
    default = posterior.default_optimizer
    optimizer, options = default.func, dict(default.keywords)  # type: ignore[attr-defined]
    member = posterior.member if isinstance(posterior, Ensemble) else posterior
    has_prior = getattr(member, "prior_precision", None) is not None
    options["weight_decay"] = 0.0 if has_prior else prior_precision / num_data
    return [
        Method(
            posterior,
            config_overrides={"optimizer": partial(optimizer, **options | {"lr": factor * options["lr"]})},
            name=label,
        )
        for factor in LR_FACTORS
    ]


def run_task(name: str, folder: Path, num_seeds: int, num_jobs: int = 1) -> dict[str, Any]:
    """Sample the references, select learning rates, train over seeds, and summarize.

    Args:
        name: A key of `TASKS`.
        folder: Folder of references and runs; the same call continues where it was stopped.
        num_seeds: Seeds of the evaluation.
        num_jobs: Processes.
    """
    task = TASKS[name]
    data = task.source.load(0)
    flatness = SAM(rho=task.rho)
    common = Comparison(
        source=make_source(data),
        model=task.model,
        posteriors=[MAP()],
        flatness=flatness,
        config=TrainingConfig(epochs=task.epochs, batch_size=50),
        num_seeds=num_seeds,
    )
    candidates, failures = {}, []
    for label, posterior in list_posteriors(task.prior_precision).items():
        methods = make_candidates(posterior, label, task.prior_precision, len(data.train))
        try:
            dry_run(task.model, data, posterior, flatness, methods[0].apply_overrides(common.config))
            candidates[label] = methods
        except (ValueError, RuntimeError, TypeError) as error:
            failures.append(f"{label}: {error}")
    selected = select_methods(
        common, candidates, [flatness], folder / "selection", seeds=[0], jobs=num_jobs, num_extensions=0
    )
    references = load_references(task, data, folder)
    files = list(map(ReferenceFile.open, references.values()))
    comparison = replace(common, posteriors=selected, references=files)
    results = comparison.run(folder / "comparison", jobs=num_jobs)
    return {
        "data": name,
        "title": task.title,
        "rho": task.rho,
        "prior_precision": task.prior_precision,
        "num_seeds": num_seeds,
        "epochs": task.epochs,
        "references": {kind: describe_reference(path, data) for kind, path in references.items()},
        "distance_of_references": compare_references(references),
        "rows": summarize(results.runs),
        "failures": [*failures, *results.failures],
        "environment": describe_environment(),
    }


def describe_reference(path: Path, data: DataSplits) -> dict[str, Any]:
    """Diagnostics, noise and metrics of a reference."""
    reference = Reference.load(path)
    predictive = reference.predictive
    if data.is_regression:
        metrics = {"nll": -float(predictive.log_prob(data.test.targets.double()).mean())}  # type: ignore[attr-defined]
    else:
        metrics = classification_metrics(predictive.log_probs, data.test.targets)  # type: ignore[attr-defined]
    description = reference.describe()
    return {
        "metrics": metrics,
        "noise": reference.measure_noise(),
        "diagnostics": description["diagnostics"],
        "config": description["config"],
    }


def compare_references(paths: Mapping[str, Path]) -> dict[str, float]:
    """Distance of the sharpness-aware to the plain reference."""
    plain, flat = (Reference.load(paths[kind]) for kind in ("plain", "flat"))
    return plain.measure(flat.predictive)


def summarize(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Mean and standard deviation of every metric over the seeds, for each posterior, plain and flat."""
    groups: dict[tuple[str, bool], list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.posterior, run.flatness != "Plain"), []).append(run)
    rows = []
    for (posterior, is_flat), group in groups.items():
        metrics = {}
        for name in group[0].metrics:
            values = [value for run in group if (value := run.metrics.get(name)) is not None]
            if values:
                metrics[name] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
        rows.append(
            {
                "posterior": posterior,
                "flat": is_flat,
                "seeds": len(group),
                "gradients": group[0].cost.gradients,
                "metrics": metrics,
                "nll_by_seed": {run.seed: run.metrics.get("nll") for run in group},
                "distance_by_seed": {
                    run.seed: run.metrics.get("tv_flat", run.metrics.get("w1_flat")) for run in group
                },
            }
        )
    return rows


def rank_correlation(rows: Sequence[Mapping[str, Any]], distance: str, score: str = "nll") -> dict[str, float] | None:
    """Spearman's correlation over methods of the distance to a reference and a score; None below 4 methods."""
    from scipy.stats import spearmanr

    pairs = [
        (row["metrics"][distance]["mean"], row["metrics"][score]["mean"])
        for row in rows
        if distance in row["metrics"] and score in row["metrics"]
    ]
    if len(pairs) < 4:
        return None
    result = spearmanr(*zip(*pairs, strict=True))
    if not math.isfinite(result.statistic):
        return None
    return {"correlation": float(result.statistic), "p_value": float(result.pvalue), "methods": len(pairs)}


def compare_distances(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each posterior, the distance of flat minus plain runs to the sharpness-aware reference."""
    by_key = {(row["posterior"], row["flat"]): row["distance_by_seed"] for row in rows}
    table = []
    for posterior in dict.fromkeys(row["posterior"] for row in rows):
        plain, flat = by_key.get((posterior, False), {}), by_key.get((posterior, True), {})
        pairs = [(plain[s], flat[s]) for s in plain if s in flat and None not in (plain[s], flat[s])]
        if pairs:
            comparison = compare_pairs(*zip(*pairs, strict=True), higher_is_better=False)
            table.append(
                {
                    "posterior": posterior,
                    "difference": comparison.difference,
                    "interval": comparison.interval,
                    "closer": comparison.winner,
                }
            )
    return table
