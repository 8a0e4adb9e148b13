"""Fits of a task: every posterior plain and flat, the estimators, the command line, and the baselines; resumable.

FOLDER/<task>.<seed>.json has a record for each method, written as soon as it is there. Posteriors whose networks are
trained alike share a training, with the results of `fit`. Test data are used for the metrics only.
"""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flatbayes
from flatbayes.checks import check
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.data import DataSplits
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.experiments.json_reader import JsonValue
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive, Predictive
from flatbayes.metrics import coverage_curve, regression_metrics
from flatbayes.metrics.classification import score_examples
from flatbayes.models import MLP
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import TrainingConfig
from flatbayes.training.identity import describe_training
from flatbayes.training.sharing import try_fit_together
from studies.defaults import baselines
from studies.defaults.tasks import Task, TaskData, make_encoder

POSTERIORS: dict[str, type[Posterior]] = {
    name: value
    for name in flatbayes.posteriors.__all__
    if isinstance(value := getattr(flatbayes.posteriors, name), type)
    and issubclass(value, Posterior)
    and value is not Posterior
}
"""Every posterior, with every option at its default."""
LARGE_METHODS = ("MAP", "SWAG", "estimator", baselines.LINEAR, baselines.FOREST, baselines.BOOSTING)
"""What is fitted on a large task."""
CLI_TASK = "breast-cancer"
NUM_DRAWS = 30
TIMEOUT_SECONDS = 300.0
"""Longest time of a fit of one posterior or one group of posteriors that share a training."""
Record = dict[str, JsonValue]


@dataclass(frozen=True)
class Job:
    """One task and seed.

    Attributes:
        task: The task.
        seed: Seed of the split and of all methods.
        folder: Folder of the results.
        only: Names of methods, such as `SWAG`, `estimator` or `random forest`; empty for all.
        timeout: Longest time of a fit in seconds.
    """

    task: Task
    seed: int
    folder: Path
    only: tuple[str, ...] = ()
    timeout: float = TIMEOUT_SECONDS

    @property
    def path(self) -> Path:
        """The file of the results."""
        return self.folder / f"{self.task.name}.{self.seed}.json"

    def includes(self, method: str) -> bool:
        """Whether a method is wanted, by the name before its flatness."""
        name = method.removesuffix(" plain").removesuffix(" flat").removesuffix(" fixed")
        return (not self.only or name in self.only) and (not self.task.large or name in (*LARGE_METHODS, "truth"))


def list_flatnesses() -> dict[str, Flatness]:
    """Plain training, the default flatness, whose radius is chosen on the validation rows, and its usual radius."""
    return {"plain": Plain(), "flat": SAM(), "fixed": SAM(rho=0.05)}


def run_job(job: Job) -> list[str]:
    """Fit all methods that have no record yet, write their records, and return messages of those that failed."""
    torch.set_num_threads(1)
    records: dict[str, Any] = read_json(job.path)["records"] if job.path.exists() else {}
    data = job.task.split(job.seed)

    def save(method: str, record: Record) -> None:
        records[method] = record
        write_json(job.path, replace_nonfinite({**describe_job(job, data.splits), "records": records}))
        print(f"{job.task.name} {job.seed} {method}: {format_record(record)}", flush=True)

    for methods, run in list_units(job, data):
        missing = [name for name in methods if name not in records and job.includes(name)]
        if not missing:
            continue
        start = time.perf_counter()
        try:
            with time_limit(job.timeout * len(missing)):
                for method, record in run(missing):
                    save(method, record)
        except Exception as error:  # the other methods run all the same
            for method in missing:
                if method not in records:
                    save(method, {"error": f"{type(error).__name__}: {error}"[:300]})
        seconds = time.perf_counter() - start
        for method in missing:
            records[method].setdefault("seconds", seconds / len(missing))
    return [f"{job.task.name} {job.seed} {name}: {r['error']}" for name, r in records.items() if "error" in r]


def describe_job(job: Job, data: DataSplits) -> Record:
    """Task, seed, and sizes of the splits, as plain data."""
    return {
        "task": job.task.name,
        "kind": job.task.kind,
        "half": job.task.half,
        "seed": job.seed,
        "train": len(data.train),
        "val": len(data.val),
        "test": len(data.test),
        "columns": math.prod(data.input_shape),
        "target_std": float(data.train.targets.double().std()) if data.is_regression else None,
    }


Unit = tuple[Sequence[str], Callable[[Sequence[str]], Iterator[tuple[str, Record]]]]


def list_units(job: Job, data: TaskData) -> Iterator[Unit]:
    """Names of methods, and a function that fits those that are asked for, and yields their records."""
    splits, seed = data.splits, job.seed
    if data.truth is not None:
        truth = data.truth
        yield ["truth"], lambda _: iter([("truth", {"metrics": measure(truth, splits.test.targets)})])
    for name in baselines.NAMES:
        yield [name], lambda names: (fit_single_baseline(name, splits, seed) for name in names)
    for label, flatness in list_flatnesses().items():
        for group in group_posteriors():
            names = [f"{name} {label}" for name in group if is_compared(name, label)]
            yield names, lambda names, flatness=flatness: fit_posteriors(names, splits, flatness, seed)  # type: ignore[misc]
    for label in ("flat", "plain"):
        yield [f"estimator {label}"], lambda names: (fit_estimator(name, data, seed) for name in names)
    if job.task.name == CLI_TASK:
        yield ["command line"], lambda _: iter([("command line", run_command_line(splits, seed))])


def is_compared(name: str, label: str) -> bool:
    """Whether a posterior is fitted with a flatness.

    Those that perturb weights themselves are fitted plain only. The fixed radius is for those that share the training
    of SWAG, since it tells the choice of a radius from the radius.
    """
    shares_training = any("SWAG" in group and name in group for group in group_posteriors())
    return label == "plain" or (not POSTERIORS[name]().perturbs_weights and (label == "flat" or shares_training))


def group_posteriors() -> list[list[str]]:
    """Names of posteriors, those that share a training together."""
    groups: dict[str, list[str]] = {}
    for name, make in POSTERIORS.items():
        groups.setdefault(str(describe_training(make(), TrainingConfig())), []).append(name)
    return list(groups.values())


def fit_posteriors(
    names: Sequence[str], data: DataSplits, flatness: Flatness, seed: int
) -> Iterator[tuple[str, Record]]:
    """Fit posteriors with one training, and evaluate them; a name is that of the posterior and of the flatness."""
    methods = [(POSTERIORS[name.rpartition(" ")[0]](), TrainingConfig()) for name in names]
    outcomes = try_fit_together(MLP, data, methods, flatness, seed=seed)
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.fitted is None:
            yield name, {"error": f"{type(outcome.error).__name__}: {outcome.error}"[:300]}
            continue
        history = [(record.get("loss"), record.get("val_nll")) for record in outcome.records]
        yield name, evaluate_fitted(outcome.fitted, data, seed) | {"history": summarize_history(history)}


def evaluate_fitted(fitted: FittedPosterior, data: DataSplits, seed: int) -> Record:
    """Metrics on the test rows, the NLL on the validation rows, and seconds."""
    start = time.perf_counter()
    metrics = measure(fitted.predict(data.test.inputs, NUM_DRAWS, seed=seed), data.test.targets)
    seconds = time.perf_counter() - start
    val = measure(fitted.predict(data.val.inputs, NUM_DRAWS, seed=seed), data.val.targets)
    cost = fitted.info["cost"]
    record: Record = {"metrics": metrics, "val": val, "seconds": cost["train_seconds"], "predict_seconds": seconds}
    record |= {"gradients": cost["gradients"], "epochs": fitted.info["training"]["epochs"]}
    choices = fitted.info["training"].get("draw_options", {})
    record["choices"] = {name: choice["value"] for name, choice in choices.items()}
    if "radius" in fitted.info:
        record["radius"] = fitted.info["radius"]
    if "prior" in fitted.info:
        record["prior"] = fitted.info["prior"]
    report = check(fitted, data.val, num_draws=NUM_DRAWS, seed=seed)
    return record | {"failed_checks": [finding.name for finding in report.findings if not finding.passed]}


def summarize_history(history: Sequence[tuple[float | None, float | None]]) -> Record:
    """First and last training loss; last and lowest validation NLL of the weights, and when it was the lowest."""
    losses = [loss for loss, _ in history if loss is not None]
    nlls = [(nll, epoch) for epoch, (_, nll) in enumerate(history) if nll is not None and math.isfinite(nll)]
    if not losses or not nlls:
        return {}
    lowest, epoch = min(nlls)
    summary: Record = {"first_loss": losses[0], "last_loss": losses[-1], "val_nll": nlls[-1][0]}
    return summary | {"lowest_val_nll": lowest, "lowest_at": epoch / max(len(history) - 1, 1)}


def measure(predictive: Predictive, targets: Tensor) -> dict[str, float]:
    """Metrics of predictions.

    `epistemic` is the share of the uncertainty that is disagreement of the networks: mutual information by entropy
    for classes, variance of the means by total variance for numbers.
    """
    if isinstance(predictive, CategoricalPredictive):
        entropy, information = (float(v.mean()) for v in (predictive.entropy, predictive.mutual_information))
        scores = score_examples(predictive.log_probs, targets).metrics()
        return scores | {"epistemic": information / max(entropy, 1e-12)}
    if not isinstance(predictive, GaussianPredictive):
        raise TypeError(f"There are no metrics for a {type(predictive).__name__}.")
    targets, pit = targets.double(), predictive.cdf(targets.double())
    metrics = regression_metrics(
        targets,
        means=predictive.member_means,
        stds=predictive.member_stds,
        log_density=predictive.log_prob(targets),
        pit=pit,
        interval=predictive.interval(0.95),
    )
    share = float(predictive.epistemic.mean() / predictive.variance.mean())
    return metrics | {"coverage_50": coverage_curve(pit, (0.5,)).coverage[0], "epistemic": share}


def fit_single_baseline(name: str, data: DataSplits, seed: int) -> tuple[str, Record]:
    """Record of a baseline."""
    start = time.perf_counter()
    predictive = baselines.fit_baseline(name, data, seed)
    seconds = time.perf_counter() - start
    return name, {"metrics": measure(predictive, data.test.targets), "seconds": seconds}


def fit_estimator(name: str, data: TaskData, seed: int) -> tuple[str, Record]:
    """Record of an estimator with default parameters.

    It has the training rows only, and makes its own split of them if it needs one. Tables with words and missing
    values go through the encoding that users write in a pipeline.
    """
    splits = data.splits
    kind = FlatBayesRegressor if splits.is_regression else FlatBayesClassifier
    estimator = kind(random_state=seed, flatness=Plain() if name.endswith("plain") else None)
    start = time.perf_counter()
    if data.frames is not None:
        encoder = make_encoder().fit(data.frames[0])
        train, test = (encoder.transform(frame) for frame in data.frames)
    else:
        train, test = (np.asarray(split.input_tensor) for split in (splits.train, splits.test))
    estimator.fit(train, np.asarray(splits.train.targets))
    seconds = time.perf_counter() - start
    predictive = estimator.predict_distribution(test)
    metrics = measure(predictive, splits.test.targets)
    return name, {"metrics": metrics, "seconds": seconds, "predict_seconds": time.perf_counter() - start - seconds}


def run_command_line(data: DataSplits, seed: int) -> Record:
    """Record of `flatbayes fit --data FILE`, with as many validation rows, which the command draws itself."""
    with TemporaryDirectory() as place:
        path, out = Path(place, "task.npz"), Path(place, "run")
        inputs, targets = (
            np.concatenate([np.asarray(getattr(split, name)) for split in (data.train, data.val)])
            for name in ("inputs", "targets")
        )
        np.savez(path, x=inputs, y=targets, x_test=np.asarray(data.test.inputs), y_test=np.asarray(data.test.targets))
        options = ["--data", str(path), "--data.val_size", str(len(data.val)), "--seed", str(seed), "--out", str(out)]
        start = time.perf_counter()
        command = [sys.executable, "-m", "flatbayes", "fit", *options]
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        if run.returncode:
            raise RuntimeError(run.stderr[-200:])
        seconds = time.perf_counter() - start
        fitted = FittedPosterior.load(out)
        metrics = measure(fitted.predict(data.test.inputs, seed=seed), data.test.targets)
    return {"metrics": metrics, "seconds": seconds}


REPEAT_SECONDS = 0.05
"""Time between two errors of a time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the main thread after some seconds, and again where other code has caught it."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:.0f} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def format_record(record: Mapping[str, Any]) -> str:
    """A line for the log."""
    if "error" in record:
        return str(record["error"])
    metrics = record["metrics"]
    names = [name for name in ("nll", "accuracy", "rmse", "coverage_95", "epistemic") if name in metrics]
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names) + f", {record.get('seconds', 0):.1f} s"


def run_jobs(jobs: Sequence[Job], num_processes: int = 1) -> list[str]:
    """Run jobs, each in one process with one thread, and return messages of the methods that failed."""
    if num_processes == 1:
        return [message for job in jobs for message in run_job(job)]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return [message for messages in pool.map(run_job, jobs) for message in messages]
