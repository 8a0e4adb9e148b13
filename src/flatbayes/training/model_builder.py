"""Networks from classes, functions or instances: whatever the user has."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from flatbayes.core.spec import to_spec

ModelFactory = Callable[..., nn.Module]


def make_model_builder(
    model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    """A function that builds the network, given whatever it takes of what is known of the data.

    Args:
        model: A network, which is copied each time, or a class or function that builds one.
        model_arguments: Arguments by name; those that the function has no parameter for are left out.

    Raises:
        TypeError: What is given builds no network.
    """
    if isinstance(model, nn.Module):
        return lambda: copy.deepcopy(model)
    if not callable(model):
        raise TypeError(f"Expected a network, or a class or function that builds one, got {type(model).__name__}.")
    arguments = _select_arguments(model, model_arguments)

    def build_model() -> nn.Module:
        module = model(**arguments)
        if not isinstance(module, nn.Module):
            raise TypeError(f"{model!r} was to build a torch.nn.Module, and returned a {type(module).__name__}.")
        return module

    return build_model


def describe_model(model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plain data that says how the network is built; None for an instance, a lambda and the like."""
    if isinstance(model, nn.Module):
        return None
    try:
        spec: dict[str, Any] = to_spec(partial(model, **_select_arguments(model, model_arguments)))
    except TypeError:
        return None
    return spec


def _select_arguments(function: Callable[..., Any], model_arguments: Mapping[str, Any]) -> dict[str, Any]:
    bound_already = function.keywords if isinstance(function, partial) else {}
    names = inspect.signature(function).parameters
    return {key: value for key, value in model_arguments.items() if key in names and key not in bound_already}
