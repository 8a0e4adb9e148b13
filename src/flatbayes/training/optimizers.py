"""Optimizers by name, by class, or bound to their arguments."""

from typing import Any

import torch

from flatbayes.core.names import format_suggestion, list_classes, match_name


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
