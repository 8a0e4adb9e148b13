"""Distance of every posterior to the exact one, plain and sharpness-aware.

For a small network on each data set the exact posterior is sampled, plain and with a radius, by full-batch MCLMC.
Every posterior that flatbayes exports is trained with Plain and with SAM of this radius, with the same prior,
temperature 1 and number of steps. Its learning rate is selected on validation data, by the NLL of plain training,
from equally many multiples of its default. On digits all seeds have the same data, and differ in initial weights,
batches and noise; on UCI data every seed is one of the standard splits, with references of its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import flatbayes.posteriors
from flatbayes import MLP, UCI, DataSource, Digits, Ensemble, Posterior, TrainingConfig
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, make_source
from flatbayes.experiments import Comparison, Method, RunResult, compare_pairs
from flatbayes.experiments.calibrated_nll import add_ensemble_equivalents
from flatbayes.experiments.references import ReferenceFile
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.flatness import SAM, Plain
from flatbayes.metrics import classification_metrics
from flatbayes.posteriors import MAP, TFB, BLoB
from flatbayes.reference import Reference, ReferenceConfig, sample_reference
from flatbayes.training import dry_run
from studies.selection import average_metrics, execute_named, load_run, name_file, select_setting

LR_FACTORS = (0.3, 1.0, 3.0, 10.0)
"""Candidates for the learning rate, as multiples of the posterior's default."""
NUM_MEMBERS = 5
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "Ensemble": [{"size": NUM_MEMBERS}],
    "Laplace": [{"structure": "last_layer"}, {"structure": "kron"}],
    "MCDropout": [{"rate": 0.1}],
    "SGLD": [{"noise": "gaussian"}, {"noise": "lattice"}],
    "SWAG": [{"scale": 0.5}, {"scale": 1.0}],
}
"""Options of posteriors that have no default, or more than one setting of interest."""


@dataclass(frozen=True)
class Task:
    """A data set with its network and its density.

    Attributes:
        title: Title for the tables.
        source: Source of the data.
        model: Builds the network.
        prior_precision: Precision of the prior.
        temperature: Temperature of the density.
        rho: Radius of the sharpness-aware posterior, at which its chains mix.
        plain: Sampler of the plain reference.
        flat: Sampler of the sharpness-aware reference, with `ascent_steps + 1` times as many gradients in a step.
        epochs: Epochs of every training.
        num_seeds: Number of seeds.
        one_split: Whether all seeds have the splits of seed 0, with one pair of references; else each has its own.
    """

    title: str
    source: DataSource
    model: Callable[..., nn.Module]
    prior_precision: float
    rho: float
    plain: ReferenceConfig
    flat: ReferenceConfig
    temperature: float = 1.0
    epochs: int = 60
    num_seeds: int = 5
    one_split: bool = True


TASKS = {
    "digits": Task(
        "digits, 500 images, MLP 64-50-10",
        Digits(train_size=500),
        partial(MLP, hidden=(50,)),
        prior_precision=10.0,
        rho=0.07,
        plain=ReferenceConfig(num_steps=6000, num_tuning_steps=1500, num_draws=500),
        flat=ReferenceConfig(num_steps=8000, num_tuning_steps=1500, num_draws=500, num_descent_steps=200),
    ),
    "energy": Task(
        "UCI energy at temperature 10, MLP 8-50-1",
        UCI(name="energy"),
        partial(MLP, hidden=(50,), constant_scale=True),
        prior_precision=10.0,
        temperature=10.0,
        rho=0.02,
        plain=ReferenceConfig(num_steps=1500, num_tuning_steps=600, num_draws=100, num_descent_steps=300),
        flat=ReferenceConfig(
            ascent_steps=2, num_steps=2000, num_tuning_steps=600, num_draws=100, num_descent_steps=300
        ),
        one_split=False,
    ),
}


def load_references(task: Task, data: DataSplits, folder: Path) -> dict[str, Path]:
    """Files of the plain and the sharpness-aware reference of a split, which are sampled where they are missing."""
    paths = {}
    for name, base, rho in (("plain", task.plain, 0.0), ("flat", task.flat, task.rho)):
        paths[name] = folder / f"{name}.safetensors"
        config = replace(base, prior_precision=task.prior_precision, temperature=task.temperature, rho=rho)
        if not paths[name].exists() or Reference.load(paths[name]).config != config:
            sample_reference(task.model, data, config).save(paths[name])
    return paths


def list_posteriors(prior_precision: float, temperature: float = 1.0) -> dict[str, Posterior]:
    """Every exported posterior of a whole network by its label, with this prior and temperature.

    A posterior without a temperature has the mode of the density: its prior counts `temperature` times.
    """
    posteriors: dict[str, Posterior] = {}
    density = {"prior_precision": prior_precision, "temperature": temperature}
    mode = {"prior_precision": prior_precision * temperature}
    for name in flatbayes.posteriors.__all__:
        kind = getattr(flatbayes.posteriors, name)
        if not (isinstance(kind, type) and issubclass(kind, Posterior)) or kind in (Posterior, BLoB, TFB):
            continue
        for options in VARIANTS.get(name, [{}]):
            names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
            own = density if "temperature" in names else mode if "prior_precision" in names else {}
            arguments: dict[str, Any] = {**options, **own}
            if kind is Ensemble:
                arguments["member"] = MAP(**mode)
            label = name if len(VARIANTS.get(name, [{}])) == 1 else f"{name} {'/'.join(map(str, options.values()))}"
            posteriors[label] = kind(**arguments)
    return posteriors


def make_candidates(posterior: Posterior, label: str, task: Task, num_data: int) -> list[Method]:
    """The posterior with each learning rate; a posterior without a prior of its own has a weight decay."""
    default = posterior.default_optimizer
    optimizer, options = default.func, dict(default.keywords)  # type: ignore[attr-defined]
    member = posterior.member if isinstance(posterior, Ensemble) else posterior
    has_prior = getattr(member, "prior_precision", None) is not None
    options["weight_decay"] = 0.0 if has_prior else task.temperature * task.prior_precision / num_data
    return [
        Method(
            posterior,
            config_overrides={"optimizer": partial(optimizer, **options | {"lr": factor * options["lr"]})},
            name=label,
        )
        for factor in LR_FACTORS
    ]


@dataclass(frozen=True)
class Study:
    """One data set in a folder.

    Attributes:
        name: A key of `TASKS`.
        folder: Folder of references and runs.
        task: The task.
    """

    name: str
    folder: Path

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.name]

    def load_data(self, seed: int) -> DataSplits:
        """Data splits of a seed."""
        return self.task.source.load(0 if self.task.one_split else seed)

    @property
    def common(self) -> Comparison:
        """Data, network and training."""
        return Comparison(
            source=make_source(self.load_data(0)) if self.task.one_split else self.task.source,
            model=self.task.model,
            posteriors=[MAP()],
            flatness=SAM(rho=self.task.rho),
            config=TrainingConfig(epochs=self.task.epochs, batch_size=50),
            num_seeds=self.task.num_seeds,
        ).with_fingerprints()

    def list_candidates(self) -> tuple[dict[str, list[Method]], dict[str, str]]:
        """Settings of every posterior, and why a posterior is not trained with SAM."""
        data, common = self.load_data(0), self.common
        candidates, refusals = {}, {}
        for label, posterior in list_posteriors(self.task.prior_precision, self.task.temperature).items():
            candidates[label] = make_candidates(posterior, label, self.task, len(data.train))
            config = candidates[label][0].apply_overrides(common.config)
            try:
                dry_run(self.task.model, data, posterior, common.flatness, config)
            except ValueError as error:
                refusals[label] = str(error)
        return candidates, refusals

    def select(self) -> tuple[list[Method], dict[str, Any], dict[str, str]]:
        """The learning rate of every posterior by the validation NLL of plain training with seed 0.

        Returns:
            The methods, the scores of all candidates, and why a posterior is not trained with SAM.
        """
        common, (candidates, refusals) = self.common, self.list_candidates()
        methods, scores = [], {}
        for name, settings in candidates.items():
            runs = {
                name_file(self.folder / "selection", name, f"{factor:g}"): common.make_run(method, Plain(), 0)
                for factor, method in zip(LR_FACTORS, settings, strict=True)
            }
            best, scores[name] = select_setting(runs)
            if best is not None:
                methods.append(settings[best])
        return methods, scores, refusals

    def run(self, seed: int, methods: Sequence[Method], refusals: Mapping[str, str]) -> list[RunResult]:
        """Train and evaluate all methods with one seed; those in `refusals` plain only."""
        files = [ReferenceFile.open(path) for path in self.load_references(seed).values()]
        common = replace(self.common, references=files)
        runs = {
            name_file(self.folder / "runs", method.label, label, seed): common.make_run(method, flatness, seed)
            for method in methods
            for label, flatness in (("plain", Plain()), ("flat", common.flatness))
            if label == "plain" or method.label not in refusals
        }
        execute_named(runs)
        return [result for path in runs if (result := load_run(path)) is not None]

    def load_references(self, seed: int) -> dict[str, Path]:
        """Files of the references of a seed."""
        name = "references" if self.task.one_split else f"references-{seed}"
        return load_references(self.task, self.load_data(seed), self.folder / name)


def run_task(name: str, folder: Path, num_seeds: int | None = None) -> Iterator[dict[str, Any]]:
    """Select learning rates, sample the references, train over seeds, and yield a summary after every seed.

    Args:
        name: A key of `TASKS`.
        folder: Folder of references and runs; the same call continues where it was stopped.
        num_seeds: Seeds of the evaluation; None for those of the task.
    """
    study, task = Study(name, folder), TASKS[name]
    methods, selection, refusals = study.select()
    runs: list[RunResult] = []
    references: list[dict[str, Any]] = []
    for seed in range(num_seeds or task.num_seeds):
        runs += study.run(seed, methods, refusals)
        if not task.one_split or seed == 0:
            references.append(describe_references(study.load_references(seed), study.load_data(seed)))
        completed, _ = add_ensemble_equivalents(runs, short_name(Plain()))
        rows = summarize(completed)
        yield {
            "data": name,
            "title": task.title,
            "rho": task.rho,
            "prior_precision": task.prior_precision,
            "temperature": task.temperature,
            "num_seeds": seed + 1,
            "planned_seeds": task.num_seeds,
            "one_split": task.one_split,
            "epochs": task.epochs,
            "references": references,
            "rows": rows,
            "selection": selection,
            "plain_only": refusals,
            "environment": describe_environment(),
        }


def describe_references(paths: Mapping[str, Path], data: DataSplits) -> dict[str, Any]:
    """The references of a split, and the distance of the sharpness-aware to the plain one."""
    plain, flat = (Reference.load(paths[kind]) for kind in ("plain", "flat"))
    return {
        **{kind: describe_reference(path, data) for kind, path in paths.items()},
        "distance": plain.measure(flat.predictive),
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


def summarize(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Mean and standard deviation of every metric over the seeds, for each posterior, plain and flat."""
    groups: dict[tuple[str, bool], list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.posterior, run.flatness != "Plain"), []).append(run)
    rows = []
    for (posterior, is_flat), group in groups.items():
        rows.append(
            {
                "posterior": posterior,
                "flat": is_flat,
                "seeds": len(group),
                "gradients": group[0].cost.gradients,
                "metrics": average_metrics(group, group[0].metrics),
                "nll_by_seed": {run.seed: run.metrics.get("nll") for run in group},
                "distance_by_seed": {
                    run.seed: run.metrics.get("tv_flat", run.metrics.get("w1_flat")) for run in group
                },
            }
        )
    return rows


def rank_correlation(rows: Sequence[Mapping[str, Any]], distance: str, score: str = "nll") -> dict[str, Any] | None:
    """Spearman's correlation over methods of the distance to a reference and a score; None below 4 methods.

    Args:
        rows: Methods.
        distance: Name of the distance.
        score: Name of the score.

    Returns:
        The correlation, its p-value, a 95 % interval by bootstrap over the methods, and their number.
    """
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
    return {
        "correlation": float(result.statistic),
        "p_value": float(result.pvalue),
        "interval": bootstrap_correlation(np.array(pairs)),
        "methods": len(pairs),
    }


def bootstrap_correlation(pairs: NDArray[np.float64], num_resamples: int = 4000) -> tuple[float, float]:
    """95 % percentile interval of Spearman's correlation, by resampling the pairs.

    Args:
        pairs: Values of the two quantities, shape (pairs, 2).
        num_resamples: Number of resamples; those with equal values only are left out.
    """
    from scipy.stats import rankdata

    generator = np.random.default_rng(0)
    resamples = pairs[generator.integers(0, len(pairs), (num_resamples, len(pairs)))]
    ranks = rankdata(resamples, axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    products, norms = centred.prod(2).sum(1), np.sqrt((centred**2).sum(1)).prod(1)
    low, high = np.quantile(products[norms > 0] / norms[norms > 0], (0.025, 0.975))
    return float(low), float(high)


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
