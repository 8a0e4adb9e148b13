"""The run-time type checks of the tests, by which jaxtyping's import hook decorates the functions of some packages.

`jaxtyping.jaxtyped` checks shapes across all arguments and the result, which takes tens of microseconds in each call.
Functions whose annotations have no shape are checked by beartype alone, in about one microsecond. Functions without a
shape that are created inside a function, as the closures of a flatness are in every step, are left to mypy.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jaxtyping
from beartype import beartype as check_types

_check_shapes = jaxtyping.jaxtyped


def check_annotations(target: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Decorate a function, a descriptor or a dataclass; what takes the place of `jaxtyping.jaxtyped`."""
    if target is None:
        return partial(check_annotations, typechecker=typechecker)
    if isinstance(target, classmethod | staticmethod):
        return type(target)(check_annotations(target.__func__, typechecker=typechecker))
    if not inspect.isfunction(target):  # a class or a property
        return _check_shapes(target, typechecker=typechecker)
    if any(_has_shape(annotation) for annotation in target.__annotations__.values()):
        return _check_shapes(target, typechecker=typechecker)
    return target if "<locals>" in target.__qualname__ else check_types(target)


def _has_shape(annotation: Any) -> bool:
    is_array = inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_array or isinstance(annotation, str) or any(map(_has_shape, get_args(annotation)))


def install() -> None:
    """Have the import hook decorate by `check_annotations`, in modules that are imported from now on."""
    jaxtyping.jaxtyped = check_annotations
