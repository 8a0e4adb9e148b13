"""Objects as plain data: `{"class_path": ..., "init_args": {...}}`, the form that YAML, JSON and the CLI share."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any


def to_spec(thing: Any) -> Any:
    """Plain data from which `build` makes an equal object.

    Dataclasses and classes or functions (also with arguments bound by `functools.partial`) become class paths
    with their arguments; numbers, strings, lists and dictionaries stay what they are.

    Raises:
        TypeError: The object has no such description (a lambda, an instance of some other class).
    """
    if thing is None or isinstance(thing, str | int | float | bool):
        return thing
    if isinstance(thing, list | tuple):
        return [to_spec(item) for item in thing]
    if isinstance(thing, dict):
        return {key: to_spec(value) for key, value in thing.items()}
    if isinstance(thing, partial) and not thing.args:
        return {"class_path": class_path(thing.func), "init_args": to_spec(thing.keywords)}
    if is_dataclass(thing) and not isinstance(thing, type):
        arguments = {f.name: to_spec(getattr(thing, f.name)) for f in fields(thing) if f.init}
        return {"class_path": class_path(type(thing)), "init_args": arguments}
    return {"class_path": class_path(thing), "init_args": {}}


def build(spec: Any, *, within: str | None = None, only: type | None = None, bind: bool = False) -> Any:
    """The inverse of `to_spec`.

    Args:
        spec: Plain data.
        within: Refuse class paths outside this package: set it wherever the data may be a stranger's.
        only: Call nothing but subclasses of this one.
        bind: Return the outermost class with its arguments bound, instead of calling it.

    Raises:
        ValueError: A class path lies outside `within`, or leads to nothing or to something else than `only`.
    """
    if isinstance(spec, list):
        return [build(item, within=within, only=only) for item in spec]
    if not isinstance(spec, dict):
        return spec
    if set(spec) - {"class_path", "init_args"} or "class_path" not in spec:
        return {key: build(value, within=within, only=only) for key, value in spec.items()}
    arguments = {key: build(value, within=within, only=only) for key, value in spec.get("init_args", {}).items()}
    target = locate(spec["class_path"], within=within)
    if only is not None and not (isinstance(target, type) and issubclass(target, only)):
        raise ValueError(f"{spec['class_path']!r} is not a subclass of {only.__name__}.")
    return partial(target, **arguments) if bind else target(**arguments)


def locate(path: str, *, within: str | None = None) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Raises:
        ValueError: The path lies outside `within`, or does not lead anywhere.
    """
    module, _, name = path.rpartition(".")
    if within is not None and not f"{module}.".startswith(f"{within}."):
        raise ValueError(f"{path!r} is not part of {within}, and nothing else is imported from here.")
    try:
        found = importlib.import_module(module)
        if within is not None and name not in getattr(found, "__all__", ()):
            raise AttributeError(name)
        target: Callable[..., Any] = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} does not lead to a class or function ({error}).") from error
    if not callable(target):
        raise ValueError(f"{path!r} is not a class or function.")
    return target


def class_path(thing: Any) -> str:
    """Dotted path of a class or function, by its public package where that exports it.

    Raises:
        TypeError: It has no name that could be imported.
    """
    name, module = getattr(thing, "__qualname__", "<instance>"), getattr(thing, "__module__", "")
    if "<" in name:
        raise TypeError(
            f"{thing!r} cannot be written down as data. Define it at the top level of a module and, if it needs "
            "arguments, bind them with functools.partial."
        )
    package = module.rpartition(".")[0]
    exported = package and getattr(importlib.import_module(package), name, None) is thing
    return f"{package if exported else module}.{name}"


def label(thing: Any) -> str:
    """Class name with the hyperparameters that differ from their defaults: `SWAG(rank=0)`, `Plain`."""
    spec = thing if isinstance(thing, dict) else to_spec(thing)
    target = locate(spec["class_path"])
    defaults = defaults_of(target)
    changed = {
        key: value for key, value in spec["init_args"].items() if key not in defaults or defaults[key] != value
    }
    inside = ", ".join(f"{key}={_show(value)}" for key, value in changed.items())
    name = spec["class_path"].rpartition(".")[2]
    return f"{name}({inside})" if inside else name


def _show(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return label(value)
    return format(value, "g") if isinstance(value, float) else str(value)


def defaults_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a class or function that have defaults, as plain data."""
    if is_dataclass(target):
        found = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(target)
            if f.init
        }
        return {name: to_spec(value) for name, value in found.items() if value is not MISSING}
    parameters = inspect.signature(target).parameters.values()
    return {p.name: to_spec(p.default) for p in parameters if p.default is not inspect.Parameter.empty}
