"""Deep ensembles (Lakshminarayanan et al., NeurIPS 2017): the same fit, repeated from fresh initial weights.

The mixture of what the runs end in. The member may be any posterior: of `SWAG()` it is MultiSWAG (Wilson &
Izmailov, NeurIPS 2020).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.posteriors.map import MAP
from flatbayes.posteriors.posterior import LossRequirement, Posterior


@dataclass(frozen=True)
class Ensemble(Posterior):
    """An equal mixture of independent runs; one run of it is one run of its member.

    Attributes:
        member: The posterior to repeat.
        size: Number of repetitions.
    """

    member: Posterior = MAP()
    size: int = 5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"An ensemble has at least 1 member, got size {self.size}.")

    @property
    def num_members(self) -> int:
        """Those of the member, `size` times."""
        return self.size * self.member.num_members

    @property
    def stochastic(self) -> bool:
        """As the member: draws of different runs always differ."""
        return self.member.stochastic

    @property
    def needs_norm_reestimation(self) -> bool:
        """As the member."""
        return self.member.needs_norm_reestimation

    @property
    def shardable(self) -> bool:
        """As the member."""
        return self.member.shardable

    @property
    def requires_stationary_loss(self) -> LossRequirement:
        """As the member."""
        return self.member.requires_stationary_loss

    @property
    def snapshot_requirements(self) -> tuple[int, int]:
        """As the member."""
        return self.member.snapshot_requirements

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """As the member."""
        return self.member.default_optimizer

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """One run of the member."""
        return self.member.init(model, make_optimizer, num_data)

    def step(self, state: State, closure: Closure) -> Tensor:
        """A step of the member."""
        return self.member.step(state, closure)

    def collect(self, state: State) -> None:
        """As the member."""
        self.member.collect(state)

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """As the member."""
        self.member.finalize(state, examples, loss_fn)

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """A draw from this run of the member."""
        return self.member.draw(state, generator)
