"""Monte Carlo dropout (Gal & Ghahramani, ICML 2016): dropout stays active at prediction.

    for each step:
        w = optimizer(w, gradient of the mean loss with dropout masks + prior_precision / num_data * w)
    draw: the network with dropout active, with new masks for every example and forward pass

Training with dropout fits the variational family q(w) = w * mask with Bernoulli masks; a draw samples the masks.

Example:
    fitted = fit(MLP, data, MCDropout(rate=0.1), SAM(rho=0.1))
    print(fitted.predict(inputs, num_draws=30).mutual_information)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.randomness import draw_seed, seeded_rng
from flatbayes.posteriors.optimization import default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision


@dataclass(frozen=True)
class MCDropout(Posterior):
    """The distribution over networks that random dropout masks make of one trained network.

    Attributes:
        rate: Dropout probability of every dropout module of the model (of any dimension); None keeps the rates of
            the model.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = prior_precision / num_data.
    """

    rate: float | None = None
    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"The dropout rate must lie strictly between 0 and 1, got {self.rate}.")

    needs_norm_reestimation = False  # training ran with such masks, so its running statistics hold for draws

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with momentum, and with weight decay unless `prior_precision` is given."""
        return default_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model and optimizer; see `Posterior.init`.

        Raises:
            ValueError: The model has no dropout modules, or all of them have rate 0.
        """
        modules = find_dropout_modules(model)
        if not modules:
            raise ValueError(
                f"MCDropout needs dropout modules, and {type(model).__name__} has none. Add torch.nn.Dropout (or "
                "Dropout1d, 2d, 3d, AlphaDropout) layers; calls of torch.nn.functional.dropout cannot be found."
            )
        if self.rate is None and all(module.p == 0 for module in modules):
            raise ValueError(
                f"All {len(modules)} dropout modules of {type(model).__name__} have rate 0, so every draw would "
                "be the same network. Set MCDropout(rate=0.1), or give the model a dropout rate."
            )
        return init_state(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step with dropout at this rate. Returns the loss of the batch."""
        with set_dropout_rate(state.model, self.rate):
            return step_optimizer(state, closure, self.prior_precision)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model in eval mode with its dropout modules in training mode, masks seeded by the generator."""
        model = state.model
        with eval_mode(model), set_dropout_rate(model, self.rate), seeded_rng(draw_seed(generator), model):
            for module in find_dropout_modules(model):
                module.train()
            yield model


def find_dropout_modules(model: nn.Module) -> list[_DropoutNd]:
    """Return all dropout layers, of any dimension and kind."""
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


@contextmanager
def set_dropout_rate(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Set the rate of every dropout module inside the context; None keeps the rates."""
    modules = find_dropout_modules(model)
    previous_rates = [module.p for module in modules]
    try:
        for module in modules:
            module.p = module.p if rate is None else rate
        yield
    finally:
        for module, previous in zip(modules, previous_rates, strict=True):
            module.p = previous
