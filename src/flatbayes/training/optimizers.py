"""Optimizers by name, by class, or bound to their arguments; and the default ones with options for few examples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from flatbayes.core import OptimizerFactory
from flatbayes.core.names import format_suggestion, list_classes, match_name
from flatbayes.core.signatures import read_signature

MIN_PRIOR_PRECISION = 2.0
"""Smallest prior precision where options are defaults, in place of a weight decay of 5e-4: chosen on the first half
of studies/defaults (docs/defaults.md)."""
MAX_TABLE_LEARNING_RATE = 0.03
"""Largest learning rate of SGD with momentum where options are defaults and inputs are rows of a table, likewise."""


@dataclass(frozen=True)
class DefaultOptimizer:
    """The default optimizer of posterior and network, with some options of its own."""

    default: "partial[torch.optim.Optimizer]"
    options: dict[str, Any]

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer where the network has no default of its own."""
        return self.bind(self.default)(params)

    def bind(self, default: Any) -> "partial[torch.optim.Optimizer]":
        """A default optimizer with the options that are given.

        Raises:
            ValueError: It has no option of that name.
        """
        names = read_signature(default.func).parameters.keys() - {"params"}
        unknown = self.options.keys() - names
        if unknown:
            kind = default.func.__name__
            raise ValueError(
                f"The default optimizer of this network is {kind}, which has no option {', '.join(sorted(unknown))}. "
                f"Leave it out, or name the optimizer: --optimizer {self.default.func.__name__}."
            )
        return partial(default.func, **default.keywords | self.options)


def resolve_optimizer(optimizer: Any) -> Any:
    """What builds an optimizer from parameters: a class for its name; a callable is returned as it is.

    Raises:
        TypeError: It is an optimizer that has its parameters already, or nothing that could be called.
        ValueError: torch.optim has no optimizer of that name.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(
            f"optimizer must build an optimizer from the parameters of each network, got an {kind}. "
            f"Write functools.partial(torch.optim.{kind}, lr={optimizer.defaults.get('lr', 0.1)})."
        )
    if isinstance(optimizer, str):
        classes = list_classes(torch.optim, torch.optim.Optimizer)
        name = match_name(optimizer, classes)
        if name is None:
            suggestion = format_suggestion(optimizer, classes)
            raise ValueError(f"torch.optim has no optimizer {optimizer!r}. {suggestion}It has {', '.join(classes)}.")
        return classes[name]
    if optimizer is not None and not callable(optimizer):
        raise TypeError(
            "optimizer must be a class such as torch.optim.SGD, or functools.partial of one with its arguments, got "
            f"{optimizer!r}."
        )
    return optimizer


def strengthen_prior(make_optimizer: OptimizerFactory, weight_decay: float) -> OptimizerFactory:
    """The optimizer with at least this weight decay; unchanged if it has none, where the posterior has the prior."""
    return _bound_option(make_optimizer, "weight_decay", lambda value: max(value, weight_decay), "weight_decay")


def limit_learning_rate(make_optimizer: OptimizerFactory, largest: float) -> OptimizerFactory:
    """The optimizer with at most this learning rate if it is SGD with momentum; unchanged otherwise."""
    return _bound_option(make_optimizer, "lr", lambda value: min(value, largest), "momentum")


def make_scaled_optimizer(make_optimizer: OptimizerFactory, factor: float, params: Any) -> torch.optim.Optimizer:
    """An optimizer with the weight decay of each parameter group multiplied by a factor."""
    optimizer = make_optimizer(params)
    for options in (*optimizer.param_groups, optimizer.defaults):
        if options.get("weight_decay"):
            options["weight_decay"] *= factor
    return optimizer


def _bound_option(
    make_optimizer: OptimizerFactory, name: str, bound: Callable[[float], float], needed: str
) -> OptimizerFactory:
    if not isinstance(make_optimizer, partial) or not make_optimizer.keywords.get(needed):
        return make_optimizer
    options = make_optimizer.keywords
    return partial(make_optimizer.func, **options | {name: bound(options[name])})
