"""Build networks from a class, a function or an instance."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from flatbayes.core.networks import copy_network
from flatbayes.core.spec import to_spec

ModelFactory = Callable[..., nn.Module]


def make_model_builder(
    model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    """A function that builds the network with those of the given arguments that it has parameters for.

    Args:
        model: A network, which is copied each time, or a class or function that builds one.
        model_arguments: Arguments by name; those without a parameter are left out.

    Raises:
        TypeError: The model is neither a network nor callable.
    """
    if isinstance(model, nn.Module):
        return lambda: copy_network(model)
    if not callable(model):
        raise TypeError(f"Expected a network, or a class or function that builds one, got {type(model).__name__}.")
    arguments = _select_arguments(model, model_arguments)

    def build_model() -> nn.Module:
        try:
            module = model(**arguments)
        except Exception as error:
            function = model.func if isinstance(model, partial) else model
            error.add_note(f"({type(error).__name__} while {getattr(function, '__name__', 'the model')} was built)")
            raise
        if not isinstance(module, nn.Module):
            raise TypeError(f"{model!r} must build a torch.nn.Module, and returned a {type(module).__name__}.")
        return module

    return build_model


def describe_model(model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plain data from which the network can be built; None for an instance or a lambda."""
    if isinstance(model, nn.Module):
        return None
    try:
        spec: dict[str, Any] = to_spec(partial(model, **_select_arguments(model, model_arguments)))
    except TypeError:
        return None
    return spec


def _select_arguments(function: Callable[..., Any], model_arguments: Mapping[str, Any]) -> dict[str, Any]:
    bound = function.keywords if isinstance(function, partial) else {}
    names = inspect.signature(function).parameters
    return {key: value for key, value in model_arguments.items() if key in names and key not in bound}
