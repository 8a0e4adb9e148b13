"""Runs of a comparison: each a posterior, flatness and seed, and a pure function of its configuration.

Runs whose networks are trained alike are executed together, with one training.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatbayes.checks import check
from flatbayes.core.components import resolve_component
from flatbayes.core.display import format_fields
from flatbayes.core.files import JsonValue, read_json, write_json
from flatbayes.core.optional import get_version
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource, DataSplits, DataWarning
from flatbayes.experiments.calibrated_nll import measure_likelihood
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.fit_options import FitOptions
from flatbayes.experiments.references import ReferenceFile, measure_distances_to
from flatbayes.experiments.run_result import RunCost, RunResult, TrainingHistory
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import Checkpoints, TrainingConfig
from flatbayes.training.callbacks.callback import Record
from flatbayes.training.fit import FitOutcome
from flatbayes.training.identity import describe_exactly, describe_training
from flatbayes.training.recording import Recordings
from flatbayes.training.sharing import try_fit_together
from flatbayes.training.trial import NetworkWarning

CHECKPOINT_INTERVAL_SECONDS = 60.0
"""Smallest time between two checkpoints of a run; a shorter run is repeated from its start."""
MAX_HISTORY_EPOCHS = 1000
"""Number of epochs up to which the history of a result has every one."""
EVALUATION_FIELDS = ("posterior", "config", "num_draws", "split", "posterior_name", "evaluations", "references")
"""Fields that are left out of the key of a training: those of the evaluation, and those of which `describe_training`
selects what determines the training."""


@dataclass(frozen=True)
class ExperimentRun:
    """Everything that determines the result of a run.

    Attributes:
        source: Source of the data; its test split is the same for every seed, unless it has standard splits.
        model: Function that builds the network, or a network, whose weights every seed starts from.
        posterior: The posterior.
        flatness: The flatness.
        config: The training configuration.
        seed: Seed of the train/validation split, initial weights, order of batches, and noise.
        num_draws: Networks averaged in a prediction.
        split: Split that is evaluated on: train, val or test.
        posterior_name: Label of the posterior in the result, by default with its hyperparameters.
        evaluations: Additional evaluations.
        references: Exact posteriors that the predictions are compared with.
        data_fingerprint: Fingerprint of the content of the source, so that results on other content are not reused.
        model_fingerprint: Fingerprint of the weights that training starts from, of a model that is a network or of
            `options.init`, likewise.
        options: Further arguments of `fit`.

    Examples:
        >>> run = ExperimentRun(
        ...     source, MLP, SWAG(rank=2), SAM(rho=0.05), config, seed=0
        ... )
        >>> result = run.execute()
        >>> sorted(result.metrics)
        ['accuracy', 'auroc_correct', 'brier', 'ece', 'nll', 'nll_calibrated']
    """

    source: DataSource
    model: nn.Module | Callable[..., nn.Module]
    posterior: Posterior
    flatness: Flatness
    config: TrainingConfig
    seed: int
    num_draws: int = 30
    split: str = "test"
    posterior_name: str | None = None
    evaluations: EvaluationConfig = EvaluationConfig()
    references: Sequence[ReferenceFile] = ()
    data_fingerprint: Mapping[str, str] | None = None
    model_fingerprint: str | None = None
    options: FitOptions = FitOptions()

    __repr__ = format_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "posterior", resolve_component(self.posterior, Posterior, "posterior"))
        object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))

    @property
    def name(self) -> str:
        """Posterior, flatness and seed, for messages."""
        return f"{self.posterior_name or short_name(self.posterior)} {short_name(self.flatness)} seed {self.seed}"

    def cache_key(self) -> str:
        """Hash of the configuration and the version of flatbayes, the name of the result file."""
        return _hash_json([get_version(), self._description])

    def training_key(self) -> str:
        """Hash of what determines the training, with the version of flatbayes; runs with equal ones can share it."""
        content = {name: value for name, value in self._description.items() if name not in EVALUATION_FIELDS}
        return _hash_json([get_version(), content, self._training_description])

    @cached_property
    def _description(self) -> dict[str, JsonValue]:
        """The fields as they are before training, which may change attributes of an object of the user's."""
        return describe_fields(self)

    @cached_property
    def _training_description(self) -> dict[str, Any]:
        return describe_training(self.posterior, self.config, self.flatness, partial(to_spec, allow_instances=True))

    def load_data(self) -> DataSplits:
        """The data splits of the seed; those of the last two calls are kept."""
        fingerprint = None if self.data_fingerprint is None else str(self.data_fingerprint)
        return _load_data(self.source, self.seed, fingerprint)

    def load_result(self, folder: Path) -> RunResult | None:
        """The cached result, None where there is no file or the file is damaged."""
        try:
            return RunResult.from_dict(read_json(folder / f"{self.cache_key()}.json"))
        except (FileNotFoundError, ValueError):
            return None

    def execute(self, folder: Path | None = None) -> RunResult:
        """Train and evaluate on one thread, so that the result does not depend on the number of parallel runs.

        Args:
            folder: Folder for the result and, while the run lasts, its checkpoints; None for neither.
        """
        (result,) = execute_together([self], folder)
        if isinstance(result, Exception):
            raise result
        return result

    def evaluate(self, fitted: FittedPosterior, data: DataSplits, records: Sequence[Record]) -> RunResult:
        """Evaluate the posterior of this run.

        Args:
            fitted: The fitted posterior.
            data: The data splits.
            records: Records of the epochs of its first network.
        """
        split = getattr(data, self.split)
        with fitted.share_predictions():
            evaluation = evaluate(fitted, split.inputs, split.targets, self.num_draws, seed=self.seed)
            report = check(fitted, split.inputs, split.targets, self.num_draws, seed=self.seed)
            likelihood, nlls = measure_likelihood(fitted, split, self.num_draws, self.seed)
            metrics, details = self.evaluations.compute_metrics(fitted, data, self.split, self.num_draws, self.seed)
            distances = self._measure_distances(fitted, data)
        records = thin_records(records)
        columns = {name: tuple(record.get(name) for record in records) for name in ("epoch", "loss", "val_nll", "lr")}
        result = RunResult(
            posterior=self.posterior_name or short_name(self.posterior),
            flatness=short_name(self.flatness),
            seed=self.seed,
            metrics=evaluation.metrics | likelihood | distances | metrics,
            data=short_name(self.source),
            model=short_name(self.model),
            split=self.split,
            cost=RunCost(**fitted.info["cost"]),
            num_networks=evaluation.num_networks,
            reliability=evaluation.reliability,
            history=TrainingHistory(**columns),
            details=replace(details, ensemble_nlls=nlls),
            radius=fitted.info.get("radius", {}),
            failed_checks={finding.name: finding.message for finding in report.failed},
        )
        return RunResult.from_dict(result.to_dict())  # as it is read back: numbers that are not finite become None

    def _measure_distances(self, fitted: FittedPosterior, data: DataSplits) -> dict[str, float]:
        """Distances to the references of this split of the data; none if no references are given."""
        if not self.references:
            return {}
        predictive = fitted.predict(getattr(data, self.split).inputs, self.num_draws, seed=self.seed)
        return measure_distances_to(self.references, predictive, self.model, data, self.split)


def describe_fields(experiment: Any) -> dict[str, JsonValue]:
    """The fields of a run or a comparison as plain data; those of `fit` only if one is set, as in old results."""
    spec: dict[str, JsonValue] = to_spec(experiment, allow_instances=True)["init_args"]
    spec["evaluations"] = experiment.evaluations.describe()
    return {name: value for name, value in spec.items() if name != "options" or experiment.options.list_set()}


def thin_records(records: Sequence[Record]) -> Sequence[Record]:
    """Records for a result: all, or about `MAX_HISTORY_EPOCHS` evenly spaced ones and those with an evaluation."""
    every = math.ceil(len(records) / MAX_HISTORY_EPOCHS)
    return [record for k, record in enumerate(records, 1) if k % every == 0 or "val_nll" in record]


def group_runs(runs: Sequence[ExperimentRun]) -> list[list[ExperimentRun]]:
    """Runs that can share a training, in the order of the first run of each."""
    groups: dict[str, list[ExperimentRun]] = {}
    for run in runs:
        names = [field.name for field in fields(run) if field.name not in EVALUATION_FIELDS]
        content = {name: describe_exactly(getattr(run, name)) for name in names}  # tells networks in memory apart
        key = json.dumps([content, describe_training(run.posterior, run.config, run.flatness)], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def try_execute_together(
    runs: Sequence[ExperimentRun], folder: Path, recordings: Recordings | None = None, key: str | None = None
) -> list[tuple[ExperimentRun, str | None]]:
    """Execute runs with one training; a failure becomes a message, so that one run does not stop the others.

    Returns:
        Every run, and its error message or None.

    Raises:
        Exception: One that is no RuntimeError or ValueError, when all runs have ended.
    """
    results = execute_together(runs, folder, recordings, key)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, RuntimeError | ValueError):
            raise result
    return [
        (run, str(result) if isinstance(result, Exception) else None)
        for run, result in zip(runs, results, strict=True)
    ]


def execute_together(
    runs: Sequence[ExperimentRun],
    folder: Path | None = None,
    recordings: Recordings | None = None,
    key: str | None = None,
) -> list[RunResult | Exception]:
    """Execute runs with one training of every network, on one thread.

    The checkpoints are named by `key`, by default that of the first result. The `training_key` lets any of the runs
    continue from them, and no other process may then execute one of these runs in the folder.

    Returns:
        The result of every run, or its error.

    Raises:
        Exception: What ended the training, if it is no RuntimeError or ValueError; the checkpoints are kept.
    """
    first, threads = runs[0], torch.get_num_threads()
    checkpoints = None
    if folder is not None:
        name = f"{key or first.cache_key()}.checkpoints"
        checkpoints = Checkpoints(folder / name, min_interval_seconds=CHECKPOINT_INTERVAL_SECONDS)
    torch.set_num_threads(1)
    results: list[RunResult | Exception] = []
    try:
        data = first.load_data()
        methods = [(run.posterior, run.config) for run in runs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NetworkWarning)  # shown by the check before the runs
            outcomes = try_fit_together(
                first.model,
                data,
                methods,
                first.flatness,
                seed=first.seed,
                checkpoints=checkpoints,
                recordings=recordings,
                **first.options.to_arguments(),
            )
        for run in runs:
            results.append(_try_evaluate(run, outcomes.pop(0), data))
            if folder is not None and isinstance(results[-1], RunResult):
                write_json(folder / f"{run.cache_key()}.json", results[-1].to_dict())
    except (RuntimeError, ValueError) as error:  # of data or training: no run has a result
        results = [error] * len(runs)
    finally:
        torch.set_num_threads(threads)
    if checkpoints is not None:
        checkpoints.remove()
    return results


def _try_evaluate(run: ExperimentRun, outcome: FitOutcome, data: DataSplits) -> RunResult | Exception:
    try:
        return run.evaluate(outcome.get_fitted(), data, outcome.records)
    except Exception as error:  # the other runs are evaluated all the same
        return error


@lru_cache(maxsize=2)
def _load_data(source: DataSource, seed: int, fingerprint: str | None) -> DataSplits:
    # Processes are reused: the fingerprint in the key makes them read a file again whose content has changed.
    with warnings.catch_warnings():
        if fingerprint is not None:  # its computation has read the data, and has shown the warnings
            warnings.simplefilter("ignore", DataWarning)
        return source.load(seed)


def _hash_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
