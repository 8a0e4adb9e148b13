"""Deep ensembles (Lakshminarayanan et al., NeurIPS 2017): an equal mixture of independent training runs.

    for member in 1..size:
        state[member] = fit of the member posterior from new initial weights
    draw: a draw of the member posterior from one of the states, in turn

The member can be any posterior; with `SWAG()` the ensemble is MultiSWAG (Wilson & Izmailov, NeurIPS 2020).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.components import forward_to, resolve_component
from flatbayes.core.context import WeightDistribution
from flatbayes.posteriors.draw_options import DrawOption
from flatbayes.posteriors.map import MAP
from flatbayes.posteriors.posterior import Posterior


@dataclass(frozen=True)
class Ensemble(Posterior):
    """An equal mixture of independent runs. A state is one run of the member, to which every method delegates.

    Use it where there is time for several trainings; the strongest baseline.

    Attributes:
        member: Posterior of each run.
        size: Number of runs.

    Examples:
        >>> fitted = fit(MLP, data, Ensemble(SWAG(rank=2), size=5), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    member: Posterior = MAP()
    size: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "member", resolve_component(self.member, Posterior, "posterior", "member"))
        if self.size < 1:
            raise ValueError(f"An ensemble has at least 1 member, got size {self.size}.")

    depends_on_model = forward_to("member", "depends_on_model")
    stochastic = forward_to("member", "stochastic")
    needs_norm_reestimation = forward_to("member", "needs_norm_reestimation")
    shardable = forward_to("member", "shardable")
    requires_stationary_loss = forward_to("member", "requires_stationary_loss")
    has_weight_distribution = forward_to("member", "has_weight_distribution")
    gradients_per_step = forward_to("member", "gradients_per_step")
    perturbs_weights = forward_to("member", "perturbs_weights")
    tolerates_skipped_steps = forward_to("member", "tolerates_skipped_steps")
    uses_gradient_only = forward_to("member", "uses_gradient_only")
    snapshot_requirements = forward_to("member", "snapshot_requirements")
    default_optimizer = forward_to("member", "default_optimizer")
    trajectory = forward_to("member", "trajectory")

    def adapt_to(self, model: nn.Module) -> Posterior:
        """Return an ensemble of the adapted member."""
        return replace(self, member=self.member.adapt_to(model))

    def with_automatic_options(self, *, is_trained: bool = False) -> Posterior:
        """Return an ensemble of the member with these defaults."""
        return replace(self, member=self.member.with_automatic_options(is_trained=is_trained))

    def without_weight_decay(self) -> Posterior:
        """Return an ensemble of the member for such an optimizer."""
        return replace(self, member=self.member.without_weight_decay())

    @property
    def num_members(self) -> int:
        """`size` times the number of runs of the member, which can be an ensemble itself."""
        return self.size * self.member.num_members

    def make_weight_distribution(self, state: State) -> WeightDistribution | None:
        """Return that of the member."""
        return self.member.make_weight_distribution(state)

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """Those of the member."""
        return {f"member.{name}": option for name, option in self.member.draw_options.items()}

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return the state of one run of the member."""
        return self.member.init(model, make_optimizer, num_data)

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step of the member."""
        return self.member.step(state, closure)

    def collect(self, state: State) -> None:
        """Record the current weights as the member does."""
        self.member.collect(state)

    def check_model(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Check the network as the member does."""
        self.member.check_model(state, examples, loss_fn)

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Finalize the run as the member does."""
        self.member.finalize(state, examples, loss_fn)

    def count_stored_snapshots(self, state: State) -> int:
        """Number of snapshots of this run."""
        return self.member.count_stored_snapshots(state)

    def load_snapshot(self, state: State, index: int) -> AbstractContextManager[nn.Module]:
        """Return a snapshot of this run."""
        return self.member.load_snapshot(state, index)

    def describe_state(self, state: State) -> Mapping[str, float]:
        """Return the figures of this run."""
        return self.member.describe_state(state)

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the layer in which the draws of this run differ."""
        return self.member.find_varying_layer(state)

    def draw_layer(
        self, state: State, layer: nn.Linear, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer in several draws of the member from this run."""
        return self.member.draw_layer(state, layer, generators)

    def describe_random_layers(self, model: nn.Module) -> Mapping[str, Mapping[str, Any]]:
        """Return those of the member."""
        return self.member.describe_random_layers(model)

    def convert_statistics(self, state: State, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the statistics of this run as the member does."""
        return self.member.convert_statistics(state, statistics)

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """Return a draw of the member from this run."""
        return self.member.draw(state, generator)
