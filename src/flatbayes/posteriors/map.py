"""The point posterior: all mass on one network, the maximum a posteriori estimate (MAP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.posteriors.optimization import check_prior_precision, default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior


@dataclass(frozen=True)
class MAP(Posterior):
    """One network, as ordinary training leaves it.

    Attributes:
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this divided by the number of training examples.
    """

    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)

    num_members = 1
    stochastic = False  # there is one network to draw
    needs_norm_reestimation = False  # the running statistics are those of training
    requires_stationary_loss = "never"  # it is where training ends
    shardable = True  # there is nothing but the weights
    snapshot_requirements = (0, 0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with momentum, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model and optimiser."""
        return init_state(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser."""
        return step_optimizer(state, closure, self.prior_precision)

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model itself, in eval mode."""
        with eval_mode(state.model):
            yield state.model
