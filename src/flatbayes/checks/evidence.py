"""What the checks look at: a fitted posterior, its predictions for labelled examples, and a few of the inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from flatbayes.calibration.map_fitting import compute_example_losses
from flatbayes.core.buffers import norm_layers
from flatbayes.likelihoods import BernoulliPredictive, NumberPredictive, Predictive
from flatbayes.likelihoods.categorical_predictive import ClassProbabilities
from flatbayes.posteriors import Ensemble, Posterior
from flatbayes.prediction import FittedPosterior

MAX_PROBES = 256
"""Largest number of inputs for which a check makes predictions of its own."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Input of a check.

    Attributes:
        fitted: The posterior.
        predictive: Its predictions for the labelled examples.
        targets: Their targets, as class indices or in the shape of the predictions; `IGNORE_INDEX` for one of several
            labels that is not known.
        inputs: Raw inputs of these examples, in the same order; None if they are not one tensor in memory.
        num_draws: Networks to draw for a prediction.
        seed: Seed of the draws.
        batch_size: Examples per forward pass.
    """

    fitted: FittedPosterior
    predictive: Predictive
    targets: Tensor
    inputs: Tensor | None
    num_draws: int
    seed: int = 0
    batch_size: int = 256

    @property
    def num_networks(self) -> int:
        """Number of networks that the predictions average."""
        return len(self.fitted.sample_ids(self.num_draws, self.seed))

    @property
    def method(self) -> Posterior:
        """The posterior of a member."""
        return get_method(self.fitted.posterior)

    @property
    def probe_rows(self) -> Tensor:
        """Indices of at most `MAX_PROBES` examples, evenly spaced."""
        count = len(self.targets)
        return torch.linspace(0, count - 1, min(count, MAX_PROBES)).long()

    def find_obstacle(self, fitted: FittedPosterior, num_draws: int) -> str | None:
        """Why a posterior cannot predict for the examples; None if it can."""
        if self.inputs is None:
            return "the inputs are not one tensor"
        has_norm_layers = any(norm_layers(state.model, state.updated_buffers) for state in fitted.states)
        if fitted.statistics_inputs or not (fitted.posterior.needs_norm_reestimation and has_norm_layers):
            return None
        if fitted.norm_statistics.keys() >= set(fitted.sample_ids(num_draws, self.seed)):
            return None
        return "BatchNorm statistics of other networks need training inputs, which the artefact does not have"

    def predict(self, fitted: FittedPosterior, rows: Tensor, num_draws: int, *, keep_members: bool = False) -> Any:
        """Predictions of a posterior for some of the examples."""
        assert self.inputs is not None
        inputs = self.inputs[rows.to(self.inputs.device)]
        return fitted.predict(
            inputs, num_draws, batch_size=self.batch_size, seed=self.seed, keep_members=keep_members
        )


def get_method(posterior: Posterior) -> Posterior:
    """The posterior of a member of an ensemble; any other as it is."""
    return get_method(posterior.member) if isinstance(posterior, Ensemble) else posterior


def compute_example_nll(predictive: Predictive, targets: Tensor) -> Tensor | None:
    """Negative log likelihood of each example, shape (examples,); None for predictions of a user's class.

    Labels that are not known do not count, nor do positions without a label.
    """
    is_known = isinstance(predictive, ClassProbabilities | BernoulliPredictive | NumberPredictive)
    return compute_example_losses(predictive, targets) if is_known else None


@dataclass(frozen=True)
class TrainingCurve:
    """Losses of a training by epoch.

    `val_nlls` are those of the network and not of the average; None where there was no validation.
    """

    epochs: tuple[float, ...]
    losses: tuple[float, ...]
    lrs: tuple[float, ...]
    val_nlls: tuple[float | None, ...]

    @property
    def times(self) -> tuple[float, ...]:
        """Sum of the learning rates up to the end of each epoch: the distance that gradient descent can go."""
        lengths = [end - start for start, end in zip((0.0, *self.epochs), self.epochs, strict=False)]
        rates = self.lrs if min(self.lrs) > 0 else [1.0] * len(self.lrs)
        return tuple(accumulate(length * rate for length, rate in zip(lengths, rates, strict=True)))

    @property
    def is_cyclical(self) -> bool:
        """Whether the learning rate rises again in the second half of the training."""
        late = self.lrs[len(self.lrs) // 2 :]
        return any(high > 1.5 * low for low, high in pairwise(late))

    @property
    def validated(self) -> list[int]:
        """Indices of the epochs with a validation."""
        return [k for k, value in enumerate(self.val_nlls) if value is not None]

    @property
    def validations(self) -> list[float]:
        """Validation NLL of these."""
        return [value for value in self.val_nlls if value is not None]

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> "TrainingCurve | None":
        """The curve of a fitted posterior; None if its artefact has none."""
        training = info.get("training")
        history = training.get("history") if isinstance(training, Mapping) else None
        if not isinstance(history, Mapping):
            return None
        columns = [history.get(name) for name in ("epoch", "loss", "lr", "val_nll")]
        if not all(isinstance(column, list | tuple) and column for column in columns):
            return None
        epochs, losses, lrs, val_nlls = (tuple(map(_to_number, column)) for column in columns if column)
        if len({len(epochs), len(losses), len(lrs), len(val_nlls)}) > 1 or None in (*epochs, *losses, *lrs):
            return None
        return cls(epochs, losses, lrs, val_nlls)  # type: ignore[arg-type]


def _to_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
