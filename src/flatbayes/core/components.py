"""Posteriors, flatness methods and schedules that are given by name or by class, or that wrap another one."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from flatbayes.core.names import format_suggestion, list_classes, match_name
from flatbayes.core.renames import explain_name

BaseT = TypeVar("BaseT")

ROLES = {
    "posterior": ("flatbayes.posteriors", "Posterior", 'SWAG() or "SWAG"'),
    "flatness": ("flatbayes.flatness", "Flatness", 'SAM() or "SAM"'),
    "schedule": ("flatbayes.training.schedules", "Schedule", 'Cosine() or "Cosine"'),
}
"""Role -> package with the classes, name of their base class, and an example."""


def resolve_component(value: Any, base: Callable[..., BaseT], role: str, argument: str | None = None) -> BaseT:
    """The instance that a name, a class or an instance stands for.

    Names are read in any letter case, and classes get their defaults; the role is a key of `ROLES`.

    Raises:
        ValueError: There is no class of that name.
        TypeError: It is of another role, or a class that needs arguments.
    """
    kind = cast(type[BaseT], base)  # mypy takes no abstract class for a type
    if isinstance(value, kind):
        return value
    argument = argument or role
    if isinstance(value, str):
        value = _find_class(value, kind, role, argument)
    if isinstance(value, type) and issubclass(value, kind):
        try:
            return value()
        except TypeError as error:
            raise TypeError(
                f"{argument} is the class {value.__name__}, which needs arguments: give an instance, "
                f"{value.__name__}(...). ({error})"
            ) from error
    raise TypeError(f"{argument} must be a {kind.__name__} such as {ROLES[role][2]}, got {_describe(value, role)}.")


def forward_to(field: str, name: str) -> Any:
    """A property of a wrapper, that of the object in one of its fields."""
    return property(lambda wrapper: getattr(getattr(wrapper, field), name), doc=f"That of the {field}.")


def _find_class(name: str, base: type[BaseT], role: str, argument: str) -> type[BaseT]:
    classes = list_classes(importlib.import_module(ROLES[role][0]), base)
    known_name = match_name(name, classes)
    if known_name is not None:
        return classes[known_name]
    explanation = explain_name(name)
    hint = f"{explanation} " if explanation else format_suggestion(name, classes)
    raise ValueError(f"Unknown {argument} {name!r}. {hint}Known: {', '.join(classes)}.")


def _describe(value: Any, role: str) -> str:
    kind = value if isinstance(value, type) else type(value)
    for other, (package, base_name, _) in ROLES.items():
        if other != role and issubclass(kind, getattr(importlib.import_module(package), base_name)):
            return f"{kind.__name__}, which is a {other}: name the arguments, posterior=SWAG(), flatness=SAM()"
    if hasattr(value, "__array__") or isinstance(value, list | tuple):
        return f"a {kind.__name__}: inputs and targets are one argument, the pair (inputs, targets)"
    if value is None:
        return "None: leave it out for the default"
    return f"the class {kind.__name__}" if isinstance(value, type) else f"{value!r}, of the type {kind.__name__}"
