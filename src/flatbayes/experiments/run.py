"""One run of a comparison: a cell of posterior x flatness x seed, as a pure function of its description."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatbayes.core.files import read_json, write_json
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource, DataSplits
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import evaluate
from flatbayes.training import Checkpoints, History, TrainingConfig, fit

CHECKPOINT_INTERVAL_SECONDS = 60.0
"""Least time between two checkpoints of a run; what takes less is begun anew."""


@dataclass(frozen=True)
class ExperimentRun:
    """What determines a run, and nothing else.

    Attributes:
        source: The data; its test part is the same for every seed, unless it has standard splits.
        model: Builds the network.
        posterior: Axis A.
        flatness: Axis B.
        config: How it is trained.
        seed: Decides which examples are for training and which for validation, initial weights, order, noise.
        num_draws: Networks averaged in the evaluation.
        split: The part of the data that it is evaluated on.
        posterior_name: What the posterior is called in the result.
        evaluations: What else is measured.
    """

    source: DataSource
    model: Callable[..., nn.Module]
    posterior: Posterior
    flatness: Flatness
    config: TrainingConfig
    seed: int
    num_draws: int = 30
    split: str = "test"
    posterior_name: str | None = None
    evaluations: EvaluationConfig = EvaluationConfig()

    def cache_key(self) -> str:
        """A name for the result, the same for equal tasks of this version of flatbayes."""
        text = json.dumps([version("flatbayes"), to_spec(self)["init_args"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load_result(self, folder: Path) -> dict[str, Any] | None:
        """The result of an earlier run, if it is in the folder and whole."""
        try:
            found = read_json(folder / f"{self.cache_key()}.json")
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and "metrics" in found else None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.posterior_name or short_name(self.posterior)} {short_name(self.flatness)} seed {self.seed}"

    def try_execute(self, folder: Path) -> "tuple[ExperimentRun, str | None]":
        """Execute, and say what went wrong instead of raising it: one run must not cost the others."""
        try:
            self.execute(folder)
        except (RuntimeError, ValueError) as error:
            self._checkpoint_manager(folder).remove()
            return self, str(error)
        return self, None

    def execute(self, folder: Path | None = None) -> dict[str, Any]:
        """Train, evaluate, and keep the result in the folder.

        One thread is used, so that the result does not depend on how many runs go on beside it.
        """
        checkpoints = None if folder is None else self._checkpoint_manager(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = self._train_and_evaluate(_load_data(self.source, self.seed), checkpoints)
        finally:
            torch.set_num_threads(threads)
        if folder is not None:
            write_json(folder / f"{self.cache_key()}.json", result)
            self._checkpoint_manager(folder).remove()
        return result

    def _checkpoint_manager(self, folder: Path) -> Checkpoints:
        return Checkpoints(
            folder / f"{self.cache_key()}.checkpoints", min_interval_seconds=CHECKPOINT_INTERVAL_SECONDS
        )

    def _train_and_evaluate(self, data: DataSplits, checkpoints: Checkpoints | None) -> dict[str, Any]:
        curves = History()
        fitted = fit(
            self.model,
            data,
            self.posterior,
            self.flatness,
            self.config,
            seed=self.seed,
            show_progress=False,
            callback=curves,
            checkpoints=checkpoints,
        )
        held_out = getattr(data, self.split)
        evaluation = evaluate(fitted, held_out.inputs, held_out.targets, self.num_draws, seed=self.seed)
        more, details = self.evaluations.compute_metrics(fitted, data, self.split, self.num_draws, self.seed)
        return {
            "data": short_name(self.source),
            "model": short_name(self.model),
            "posterior": self.posterior_name or short_name(self.posterior),
            "flatness": short_name(self.flatness),
            "seed": self.seed,
            "metrics": evaluation.metrics | more,
            "cost": fitted.info["cost"],
            "num_networks": evaluation.num_networks,
            "reliability": evaluation.reliability,
            "curves": _collect_history_columns(curves.records),
            "details": details,
        }


@lru_cache(maxsize=2)
def _load_data(source: DataSource, seed: int) -> DataSplits:
    return source.load(seed)


def _collect_history_columns(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    first = [r for r in records if r["run"] == 0]  # of an ensemble, the curve of its first member
    return {key: [r.get(key) for r in first] for key in ("epoch", "loss", "val_nll", "lr")}
