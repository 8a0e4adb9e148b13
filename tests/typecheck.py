"""The run-time type checker of the tests, by which jaxtyping's import hook decorates every function of some packages.

A function inside a function is decorated each time it is created, in every training step for that of a flatness.
Its checker depends on its annotations only, so it is compiled once.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_checkers = dict[tuple[Any, ...], Callable[..., Any]]()


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `beartype` returns for a function that jaxtyping generates: it has a signature, and no body or closure."""
    if "<locals>" not in function.__qualname__ or function.__closure__:
        return beartype(function)
    code, annotations = function.__code__, function.__annotations__
    key = (function.__module__, function.__qualname__, code.co_code, code.co_varnames, *annotations.items())
    try:
        checker = _checkers.get(key)
    except TypeError:  # an annotation without a hash
        return beartype(function)
    if checker is None:
        checker = _checkers[key] = beartype(function)
    return checker
