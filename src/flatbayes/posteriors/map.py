"""Maximum a posteriori estimate (MAP): all probability mass on one network, the result of ordinary training.

    for each step:
        g = gradient of the mean loss over a batch + prior_precision / num_data * w
        w = optimizer(w, g)
    draw: w

All draws of a run are the same network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.posteriors.optimization import init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.requirements import Trajectory


@dataclass(frozen=True)
class MAP(Posterior):
    """A point estimate: one trained network.

    Use it where one network must suffice, and as the baseline of every posterior.

    Attributes:
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = prior_precision / num_data.

    Examples:
        >>> fitted = fit(MLP, data, MAP(), SAM(rho=0.1), config)
        >>> fitted.predict(inputs).confidence.shape
        torch.Size([100])
    """

    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)

    stochastic = False
    needs_norm_reestimation = False  # draws have the weights of training, and so its running statistics
    shardable = True
    uses_gradient_only = True

    @property
    def trajectory(self) -> Trajectory:
        """That of the optimizer, with the prior."""
        return Trajectory.of("optimizer", prior_precision=self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model and optimizer; see `Posterior.init`."""
        return init_state(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step. Returns the loss of the batch."""
        return step_optimizer(state, closure, self.prior_precision)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the trained model in eval mode."""
        with eval_mode(state.model):
            yield state.model
