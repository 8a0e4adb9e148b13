"""Monte-Carlo dropout (Gal & Ghahramani, ICML 2016): dropout left on at prediction time.

Training with dropout fits the variational family q(w) = w * mask, a product of Bernoulli masks; drawing a
network means drawing masks. Every forward pass inside a draw has masks of its own for each example.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.randomness import draw_seed, seeded_rng
from flatbayes.posteriors.optimization import check_prior_precision, default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior


@dataclass(frozen=True)
class MCDropout(Posterior):
    """The networks that dropout makes of one trained network.

    Attributes:
        rate: Probability of dropping a unit, for every dropout module of the model (of any dimension); None
            keeps the rates the model came with.
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this divided by the number of training examples.
    """

    rate: float | None = None
    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"The dropout rate must lie strictly between 0 and 1, got {self.rate}.")

    num_members = 1
    stochastic = True  # each draw has masks of its own
    needs_norm_reestimation = False  # training ran with such masks, and its running statistics are theirs
    requires_stationary_loss = "never"  # it is where training ends
    shardable = False  # masks would have to be the same everywhere
    snapshot_requirements = (0, 0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with momentum, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model and optimiser.

        Raises:
            ValueError: The model has no dropout modules, or all of them have rate 0.
        """
        modules = dropout_modules(model)
        if not modules:
            raise ValueError(
                f"MCDropout needs dropout modules, and {type(model).__name__} has none. Add torch.nn.Dropout (or "
                "Dropout1d, 2d, 3d, AlphaDropout) layers; calls of torch.nn.functional.dropout cannot be seen."
            )
        if self.rate is None and all(module.p == 0 for module in modules):
            raise ValueError(
                f"All {len(modules)} dropout modules of {type(model).__name__} have rate 0, so every draw would "
                "be the same network. Set MCDropout(rate=0.1), or give the model a dropout rate."
            )
        return init_state(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser, with the closure's forward pass under this rate."""
        with set_dropout_rate(state.model, self.rate):
            return step_optimizer(state, closure, self.prior_precision)

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model in eval mode, but for its dropout modules, with masks from the generator."""
        model = state.model
        with eval_mode(model), set_dropout_rate(model, self.rate), seeded_rng(draw_seed(generator), model):
            for module in dropout_modules(model):
                module.train()
            yield model


def dropout_modules(model: nn.Module) -> list[_DropoutNd]:
    """All dropout layers, of any dimension and kind."""
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


@contextmanager
def set_dropout_rate(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Inside, every dropout module has this rate; None changes nothing."""
    modules = dropout_modules(model)
    rates = [module.p for module in modules]
    try:
        for module in modules:
            module.p = module.p if rate is None else rate
        yield
    finally:
        for module, previous in zip(modules, rates, strict=True):
            module.p = previous
