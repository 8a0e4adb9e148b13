"""Monte Carlo dropout (Gal & Ghahramani, ICML 2016): dropout stays active at prediction.

    for each step:
        w = optimizer(w, gradient of the mean loss with dropout masks + prior_precision / num_data * w)
    draw: the network with dropout active as in training, with new masks for every example and forward pass

Training with dropout fits the variational family q(w) = w * mask with Bernoulli masks; a draw samples the masks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode, preserve_buffers
from flatbayes.core.randomness import RandomState, Stream, draw_seed, make_generator, seeded_rng
from flatbayes.posteriors.draw_options import AUTO, MARGIN, AutoFloat, DrawOption
from flatbayes.posteriors.optimization import init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.requirements import Trajectory

DEFAULT_RATE = 0.1
"""Rate where neither posterior nor network gives one."""


@dataclass(frozen=True)
class MCDropout(Posterior):
    """One trained network with random dropout masks.

    Use it with a network that has dropout, without a change of its training.

    Attributes:
        rate: Dropout probability of every dropout layer of torch.nn in the model (of any dimension). None keeps the
            rates of the model, and `fit` takes 0.1 where these are all 0. Attention, recurrent layers, stochastic
            depth and calls of functional dropout drop as in training, at rates of their own.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = prior_precision / num_data.
        draw_rate: Rate of draws. `auto`: chosen on validation examples after training, that of training without any.
            None: `auto` where the number of epochs is automatic, otherwise that of training.

    Examples:
        >>> fitted = fit(MLP, data, MCDropout(rate=0.1), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    rate: float | None = None
    prior_precision: float | None = None
    draw_rate: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"The dropout rate must lie strictly between 0 and 1, got {self.rate}.")
        if self.draw_rate not in (None, AUTO) and (isinstance(self.draw_rate, str) or not 0 < self.draw_rate < 1):
            raise ValueError(f"draw_rate must lie strictly between 0 and 1, or be 'auto'; got {self.draw_rate!r}.")

    @property
    def depends_on_model(self) -> bool:
        """Whether no rate is given."""
        return self.rate is None

    def adapt_to(self, model: nn.Module) -> Posterior:
        """Return it with `DEFAULT_RATE` where no rate is given, and all dropout layers of the network have rate 0."""
        modules = find_dropout_modules(model)
        is_off = bool(modules) and all(module.p == 0 for module in modules) and not find_other_dropout(model)
        return replace(self, rate=DEFAULT_RATE) if self.rate is None and is_off else self

    needs_norm_reestimation = False  # training ran with such masks, so its running statistics hold for draws

    @property
    def uses_gradient_only(self) -> bool:
        """Whether the model keeps its own rates: others are set around every gradient."""
        return self.rate is None

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """The rate of draws."""
        return {"draw_rate": DrawOption(None, (0.01, 0.05, 0.2, 0.5), margin=MARGIN)}

    @property
    def trajectory(self) -> Trajectory:
        """That of MAP, with dropout at this rate; None is that of MAP itself."""
        return Trajectory.of("optimizer", prior_precision=self.prior_precision, dropout_rate=self.rate)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model and optimizer; see `Posterior.init`.

        Raises:
            ValueError: The model has no dropout, or all of it has rate 0.
        """
        modules, others = find_dropout_modules(model), find_other_dropout(model)
        if not has_dropout(model):
            raise ValueError(
                f"MCDropout needs dropout layers, and {type(model).__name__} has none. Add torch.nn.Dropout (or "
                "Dropout1d, 2d, 3d, AlphaDropout) layers, or set the dropout of its attention or recurrent layers. A "
                "network whose only dropout is a call of torch.nn.functional.dropout is not recognised."
            )
        if self.rate is None and not others and all(module.p == 0 for module in modules):
            raise ValueError(
                f"Every dropout module of {type(model).__name__} has rate 0, so every draw would "
                "be the same network. Set MCDropout(rate=0.1), or give the model a dropout rate."
            )
        return init_state(model, make_optimizer, num_data, self.prior_precision)

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step with dropout at this rate. Returns the loss of the batch."""
        with set_dropout_rate(state.model, self.rate):
            return step_optimizer(state, closure, self.prior_precision)

    @torch.no_grad()
    def check_model(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Check that dropout is active in a draw.

        Raises:
            ValueError: A draw uses no random numbers.
        """
        for inputs, _ in examples:
            with self.draw(state, make_generator(Stream.DRY_RUN)) as network:
                before = RandomState.capture(network)
                network(inputs)
                is_random = not before.equals(RandomState.capture(network))
            if not is_random:
                raise ValueError(
                    f"No dropout of {type(state.model).__name__} is active in training mode: its rate is 0, or its "
                    "module is not called, so every draw would be the same network. Give the model a dropout rate, "
                    "or call its dropout in forward."
                )

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with dropout as in training, masks seeded by the generator.

        All modules are in training mode, in which attention, recurrent layers, stochastic depth and calls of
        functional dropout are random too, except for normalization layers and modules whose buffers training updates.
        """
        model = state.model
        updated_buffers, seed = state.updated_buffers or frozenset(), draw_seed(generator)
        set_rate = set_dropout_rate(model, self._rate_of_draws)
        with eval_mode(model), preserve_buffers(model), set_rate, seeded_rng(seed, model):
            model.train()  # by the model's own rules: what it freezes in training is frozen here
            for name, module in model.named_modules():
                buffer_names = {f"{name}.{key}".removeprefix(".") for key in module._buffers}
                if isinstance(module, _NormBase) or buffer_names & updated_buffers:
                    module.training = False
            yield model

    def describe_random_layers(self, model: nn.Module) -> Mapping[str, Mapping[str, Any]]:
        """Return the dropout rates in draws, by name of the layer; see `describe_dropout`."""
        with set_dropout_rate(model, self._rate_of_draws):
            return describe_dropout(model)

    @property
    def _rate_of_draws(self) -> float | None:
        draw_rate: float | None = self.get_draw_option("draw_rate")
        return self.rate if draw_rate is None else draw_rate


def has_dropout(model: nn.Module) -> bool:
    """Whether a network has modules that may drop at random in training mode."""
    return len([*find_dropout_modules(model), *find_other_dropout(model)]) > 0


def find_dropout_modules(model: nn.Module) -> list[_DropoutNd]:
    """Return all dropout layers, of any dimension and kind."""
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


def find_other_dropout(model: nn.Module) -> list[nn.Module]:
    """Return modules that may drop at random in training mode and are no dropout layers of torch.

    These are attention and recurrent layers with dropout, and modules whose class is named so, such as DropPath.
    """
    others: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            may_drop = module.dropout > 0
        elif isinstance(module, nn.RNNBase):
            may_drop = module.dropout > 0 and module.num_layers > 1
        elif isinstance(module, _DropoutNd) or type(module).__module__.startswith("torch.nn.modules"):
            may_drop = False  # those of torch contain dropout layers
        else:
            may_drop = _is_named_dropout(module)
        if may_drop:
            others.append(module)
    return others


def describe_dropout(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the attributes that are dropout rates above 0, by name of the module.

    These are `p` of dropout layers, with the class of the layer, and attributes with `drop` in their names, such as
    `dropout` of recurrent and attention layers of torch and `attention_dropout` of those of transformers.
    """
    layers: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        is_dropout = isinstance(module, _DropoutNd) or _is_named_dropout(module)
        rates = {
            key: value
            for key, value in vars(module).items()
            if ("drop" in key or (is_dropout and key == "p")) and isinstance(value, float) and 0 < value <= 1
        }
        if rates:
            layers[name] = {"class": type(module).__name__, **rates} if is_dropout else rates
    return layers


def _is_named_dropout(module: nn.Module) -> bool:
    class_names = [cls.__name__.lower() for cls in type(module).__mro__]
    return any("drop" in name or name == "stochasticdepth" for name in class_names)


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
