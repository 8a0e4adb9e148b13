"""Arguments of the classes and functions that build networks."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flatbayes.core.names import format_names, format_suggestion
from flatbayes.core.signatures import read_signature

OUTPUT_ARGUMENTS = ("num_classes", "num_outputs")
"""Parameters of a class or function that are the number of outputs of the network."""


def bind_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Those of the given arguments that a class or function has parameters for, and `partial` has not bound.

    Args:
        function: Builds a network.
        arguments: What is known about the network, such as `num_classes`.
        source: Where the arguments are from, for the message: a plural, such as `the data`.

    Raises:
        TypeError: Others are missing, or `partial` has bound one that the function does not have.
    """
    selected = select_arguments(function, arguments)
    missing = find_missing_arguments(function, selected)
    if missing:
        name = getattr(function.func if isinstance(function, partial) else function, "__name__", "the model")
        given = f" ({source} give {', '.join(arguments)})" if arguments else ""
        raise TypeError(
            f"{name} needs {', '.join(missing)} to be built{given}: bind them, functools.partial({name}, "
            f"{missing[0]}=...), or give a network, {name}(...)."
        )
    return selected


def select_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a function has parameters for, and `partial` has not bound."""
    bound = function.keywords if isinstance(function, partial) else {}
    names = _get_parameters(function)
    return {key: value for key, value in arguments.items() if key in names and key not in bound}


def find_missing_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """Parameters without a value; `inspect` leaves out the ones that `partial` has bound by position."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = _get_parameters(function).values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name not in arguments]


def _get_parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function; those that `partial` has bound by keyword keep a default.

    Raises:
        TypeError: `partial` has bound an argument that the function does not have.
    """
    if isinstance(function, partial):
        parameters = read_signature(function.func).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        wrong = [] if takes_any else [key for key in function.keywords if key not in parameters]
        if wrong:
            name = getattr(function.func, "__name__", "the model")
            raise TypeError(
                f"{name} has no argument {wrong[0]}. {format_suggestion(wrong[0], parameters)}Its arguments are "
                f"{format_names(parameters)}."
            )
    return read_signature(function).parameters
