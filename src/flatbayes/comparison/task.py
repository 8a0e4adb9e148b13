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

from flatbayes.comparison.measures import Measures
from flatbayes.core.files import read_json, write_json
from flatbayes.core.spec import label, to_spec
from flatbayes.data import Dataset, Source
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import evaluate
from flatbayes.training import Checkpoints, Curves, Recipe, fit

SECONDS = 60.0
"""Least time between two checkpoints of a run; what takes less is begun anew."""


@dataclass(frozen=True)
class Task:
    """What determines a run, and nothing else.

    Attributes:
        source: The data; its test part is the same for every seed, unless it has standard splits.
        model: Builds the network.
        posterior: Axis A.
        flatness: Axis B.
        recipe: How it is trained.
        seed: Decides which examples are for training and which for validation, initial weights, order, noise.
        num_draws: Networks averaged in the evaluation.
        part: The part of the data that it is evaluated on.
        called: What the posterior is called in the result.
        measures: What else is measured.
    """

    source: Source
    model: Callable[..., nn.Module]
    posterior: Posterior
    flatness: Flatness
    recipe: Recipe
    seed: int
    num_draws: int = 30
    part: str = "test"
    called: str | None = None
    measures: Measures = Measures()

    def key(self) -> str:
        """A name for the result, the same for equal tasks of this version of flatbayes."""
        text = json.dumps([version("flatbayes"), to_spec(self)["init_args"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def kept(self, folder: Path) -> dict[str, Any] | None:
        """The result of an earlier run, if it is in the folder and whole."""
        try:
            found = read_json(folder / f"{self.key()}.json")
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and "metrics" in found else None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.called or label(self.posterior)} {label(self.flatness)} seed {self.seed}"

    def attempt(self, folder: Path) -> "tuple[Task, str | None]":
        """Execute, and say what went wrong instead of raising it: one run must not cost the others."""
        try:
            self.execute(folder)
        except (RuntimeError, ValueError) as error:
            self._checkpoints(folder).remove()
            return self, str(error)
        return self, None

    def execute(self, folder: Path | None = None) -> dict[str, Any]:
        """Train, evaluate, and keep the result in the folder.

        One thread is used, so that the result does not depend on how many runs go on beside it.
        """
        checkpoints = None if folder is None else self._checkpoints(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = self._result(_load(self.source, self.seed), checkpoints)
        finally:
            torch.set_num_threads(threads)
        if folder is not None:
            write_json(folder / f"{self.key()}.json", result)
            self._checkpoints(folder).remove()
        return result

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder / f"{self.key()}.checkpoints", seconds=SECONDS)

    def _result(self, data: Dataset, checkpoints: Checkpoints | None) -> dict[str, Any]:
        curves = Curves()
        fitted = fit(
            self.model,
            data,
            self.posterior,
            self.flatness,
            self.recipe,
            seed=self.seed,
            progress=False,
            watch=curves,
            checkpoints=checkpoints,
        )
        held_out = getattr(data, self.part)
        evaluation = evaluate(fitted, held_out.inputs, held_out.targets, self.num_draws, seed=self.seed)
        more, details = self.measures.of(fitted, data, self.part, self.num_draws, self.seed)
        return {
            "data": label(self.source),
            "model": label(self.model),
            "posterior": self.called or label(self.posterior),
            "flatness": label(self.flatness),
            "seed": self.seed,
            "metrics": evaluation.metrics | more,
            "cost": fitted.info["cost"],
            "num_networks": evaluation.num_networks,
            "reliability": evaluation.reliability,
            "curves": _columns(curves.records),
            "details": details,
        }


@lru_cache(maxsize=2)
def _load(source: Source, seed: int) -> Dataset:
    return source.load(seed)


def _columns(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    first = [r for r in records if r["run"] == 0]  # of an ensemble, the curve of its first member
    return {key: [r.get(key) for r in first] for key in ("epoch", "loss", "val_nll", "lr")}
