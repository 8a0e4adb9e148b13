"""One run of a comparison: one posterior, flatness and seed, as a pure function of its configuration."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from flatbayes.core.components import resolve_component
from flatbayes.core.files import read_json, write_json
from flatbayes.core.optional import get_version
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource, DataSplits, DataWarning
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.run_result import RunCost, RunResult, TrainingHistory
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import evaluate
from flatbayes.training import Checkpoints, History, TrainingConfig, fit

CHECKPOINT_INTERVAL_SECONDS = 60.0
"""Smallest time between two checkpoints of a run; a shorter run is repeated from its start."""


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
        data_fingerprint: Fingerprint of the content of the source, so that results on other content are not reused.
        model_fingerprint: Fingerprint of the weights of a model that is a network, likewise.

    Examples:
        >>> run = ExperimentRun(
        ...     source, MLP, SWAG(rank=2), SAM(rho=0.05), config, seed=0
        ... )
        >>> result = run.execute()
        >>> sorted(result.metrics)
        ['accuracy', 'auroc_correct', 'brier', 'ece', 'nll']
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
    data_fingerprint: Mapping[str, str] | None = None
    model_fingerprint: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "posterior", resolve_component(self.posterior, Posterior, "posterior"))
        object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))

    @property
    def name(self) -> str:
        """Posterior, flatness and seed, for messages."""
        return f"{self.posterior_name or short_name(self.posterior)} {short_name(self.flatness)} seed {self.seed}"

    def cache_key(self) -> str:
        """Hash of the configuration and the version of flatbayes, the name of the result file."""
        text = json.dumps([get_version(), to_spec(self, allow_instances=True)["init_args"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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

    def try_execute(self, folder: Path) -> "tuple[ExperimentRun, str | None]":
        """Execute; a failure becomes a message, so that one run does not stop the others.

        Returns:
            The run itself, and the error message or None.
        """
        try:
            self.execute(folder)
        except (RuntimeError, ValueError) as error:
            self._checkpoint_manager(folder).remove()
            return self, str(error)
        return self, None

    def execute(self, folder: Path | None = None) -> RunResult:
        """Train and evaluate on one thread, so that the result does not depend on the number of parallel runs.

        Args:
            folder: Folder for the result and, while the run lasts, its checkpoints; None for neither.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            checkpoints = None if folder is None else self._checkpoint_manager(folder)
            data = self.load_data()
            result = self._train_and_evaluate(data, checkpoints)
        finally:
            torch.set_num_threads(threads)
        if folder is not None:
            write_json(folder / f"{self.cache_key()}.json", result.to_dict())
            self._checkpoint_manager(folder).remove()
        return result

    def _checkpoint_manager(self, folder: Path) -> Checkpoints:
        return Checkpoints(
            folder / f"{self.cache_key()}.checkpoints", min_interval_seconds=CHECKPOINT_INTERVAL_SECONDS
        )

    def _train_and_evaluate(self, data: DataSplits, checkpoints: Checkpoints | None) -> RunResult:
        history = History()
        fitted = fit(
            self.model,
            data,
            self.posterior,
            self.flatness,
            self.config,
            seed=self.seed,
            show_progress=False,
            callback=history,
            checkpoints=checkpoints,
        )
        split = getattr(data, self.split)
        with fitted.share_predictions():
            evaluation = evaluate(fitted, split.inputs, split.targets, self.num_draws, seed=self.seed)
            metrics, details = self.evaluations.compute_metrics(fitted, data, self.split, self.num_draws, self.seed)
        first_member = [record for record in history.records if record["member"] == 0]
        columns = {
            name: tuple(record.get(name) for record in first_member) for name in ("epoch", "loss", "val_nll", "lr")
        }
        result = RunResult(
            posterior=self.posterior_name or short_name(self.posterior),
            flatness=short_name(self.flatness),
            seed=self.seed,
            metrics=evaluation.metrics | metrics,
            data=short_name(self.source),
            model=short_name(self.model),
            split=self.split,
            cost=RunCost(**fitted.info["cost"]),
            num_networks=evaluation.num_networks,
            reliability=evaluation.reliability,
            history=TrainingHistory(**columns),
            details=details,
        )
        return RunResult.from_dict(result.to_dict())  # as it is read back: numbers that are not finite become None


@lru_cache(maxsize=2)
def _load_data(source: DataSource, seed: int, fingerprint: str | None) -> DataSplits:
    # Processes are reused: the fingerprint in the key makes them read a file again whose content has changed.
    with warnings.catch_warnings():
        if fingerprint is not None:  # its computation has read the data, and has shown the warnings
            warnings.simplefilter("ignore", DataWarning)
        return source.load(seed)
