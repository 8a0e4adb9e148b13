"""Base class of samplers whose draws are the stored snapshots of their chains."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import nn

from flatbayes.core import OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.tensor_lists import unflatten
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.draw_options import (
    AUTO,
    BURN_IN,
    SCALE_OPTIONS,
    AutoFloat,
    DrawOption,
    check_fraction,
    get_fraction,
)
from flatbayes.posteriors.optimization import check_temperature, default_sgd
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.requirements import SnapshotRequirements
from flatbayes.posteriors.snapshots import (
    Storage,
    add_snapshot,
    check_snapshot_options,
    count_stored_snapshots,
    draw_snapshot_index,
)
from flatbayes.posteriors.tempered_posterior import TemperedPosterior

ZERO_TEMPERATURE_HINT = (
    "At temperature 0 a sampler has no noise: use MAP for the final weights, SWAG for late iterates."
)
"""Added to the message that refuses a temperature."""


class SnapshotSampler(TemperedPosterior):
    """A sampler whose draws are the snapshots in a storage of `flatbayes.posteriors.snapshots`.

    A subclass is a dataclass with the fields `prior_precision`, `temperature`, `max_snapshots`, `storage`, `burn_in`
    and, if it does not override `load_snapshot`, `scale`.
    """

    prior_precision: float | None
    max_snapshots: int
    storage: Storage
    scale: AutoFloat | None
    burn_in: AutoFloat | None

    automatic_temperature = fine_tuning_temperature = 0.01  # docs/defaults.md
    requires_stationary_loss = "while_collecting"  # snapshots are samples of one density

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_temperature(self._temperature, ZERO_TEMPERATURE_HINT)
        check_snapshot_options(self.max_snapshots, self.storage)
        check_fraction("burn_in", self.burn_in, 0.0, 0.5)

    def with_automatic_options(self, *, is_trained: bool = False) -> Posterior:
        """Return this posterior at the temperature of such a training, and with a burn-in that is chosen."""
        posterior = super().with_automatic_options(is_trained=is_trained)
        is_chosen = is_trained and self.burn_in is None
        return replace(posterior, burn_in=AUTO) if is_chosen else posterior  # type: ignore[type-var]

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """The scale of the covariance, after the burn-in if that is to be chosen."""
        return {**self._burn_in_options, **SCALE_OPTIONS}

    @property
    def _burn_in_options(self) -> dict[str, DrawOption]:
        return {"burn_in": BURN_IN} if self.burn_in == AUTO else {}

    def find_first_row(self, state: State) -> int:
        """Number of stored snapshots that draws leave out."""
        return round(get_fraction(self.burn_in, 0.0) * count_stored_snapshots(state))

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD without momentum, and with weight decay unless `prior_precision` is given."""
        return default_sgd(self.prior_precision, momentum=0.0)

    @property
    def stochastic(self) -> bool:
        """True if more than one snapshot can be stored."""
        return self.max_snapshots > 1

    @property
    def snapshot_requirements(self) -> SnapshotRequirements:
        """At least one snapshot, and up to `max_snapshots`."""
        return SnapshotRequirements(1, self.max_snapshots)

    def collect(self, state: State) -> None:
        """Store the current weights, up to `max_snapshots`."""
        add_snapshot(state.statistics, trainable_parameters(state.model))

    def count_stored_snapshots(self, state: State) -> int:
        """Number of snapshots in the storage after the burn-in."""
        return count_stored_snapshots(state) - self.find_first_row(state)

    @contextmanager
    def load_snapshot(self, state: State, index: int) -> Iterator[nn.Module]:
        """Yield the model with the weights of this snapshot, at a distance from the mean that `scale` determines."""
        params, first = trainable_parameters(state.model), self.find_first_row(state)
        rows = state.statistics["snapshots"][first : count_stored_snapshots(state)]
        weights, scale = rows[index], self.get_draw_option("scale")
        if scale != 1:
            weights = torch.lerp(rows.mean(0), weights, math.sqrt(scale))
        with swap_values(params, unflatten(weights, params)), eval_mode(state.model):
            yield state.model

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """Return a context that yields the model with the weights of a snapshot.

        Raises:
            RuntimeError: No snapshot was collected.
        """
        index = draw_snapshot_index(self.count_stored_snapshots(state), generator, type(self).__name__)
        return self.load_snapshot(state, index)
