"""The point posterior: all mass on one network, the maximum a posteriori estimate (MAP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, MakeOptimizer, State
from flatbayes.core.buffers import evaluating
from flatbayes.posteriors.gradient import check_prior_precision, start, update, usual_sgd
from flatbayes.posteriors.posterior import Posterior


@dataclass(frozen=True)
class Point(Posterior):
    """One network, as ordinary training leaves it.

    Attributes:
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this divided by the number of training examples.
    """

    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)

    runs = 1
    stochastic = False  # there is one network to draw
    moves_weights = False  # the running statistics are those of training
    needs_one_loss = "never"  # it is where training ends
    shardable = True  # there is nothing but the weights
    snapshots = (0, 0)

    @property
    def default_optimizer(self) -> MakeOptimizer:
        """SGD with momentum, and with weight decay unless the prior is given."""
        return usual_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: MakeOptimizer | None, num_data: int) -> State:
        """Model and optimiser."""
        return start(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser."""
        return update(state, closure, self.prior_precision)

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finish(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model itself, in eval mode."""
        with evaluating(state.model):
            yield state.model
