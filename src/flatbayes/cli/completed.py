"""Descriptions of objects with all their arguments written out.

The parser fills what a description leaves out with what the option had before, where the two classes have an argument
of the same name: `ASAM` would get the radius of `SAM`, the default. With every argument there, nothing is left to do.
"""

from dataclasses import is_dataclass
from typing import Any

from flatbayes.core.spec import defaults_of as arguments_of
from flatbayes.core.spec import locate


def completed(thing: Any) -> Any:
    """The same plain data, every class of flatbayes that it names with its own defaults for what is not given."""
    if isinstance(thing, list):
        return [completed(item) for item in thing]
    if not isinstance(thing, dict):
        return thing
    found = {key: completed(value) for key, value in thing.items()}
    given = found.get("init_args")
    if given is None or isinstance(given, dict):
        defaults = defaults_of(found.get("class_path"))
        if defaults:
            found["init_args"] = defaults | (given or {})
    return found


def defaults_of(path: Any) -> dict[str, Any]:
    """The arguments of a dataclass of flatbayes that have defaults, as plain data; none of other classes."""
    if not isinstance(path, str) or not path.startswith("flatbayes."):
        return {}
    try:
        target = locate(path)
    except ValueError:
        return {}  # which the parser says better
    return arguments_of(target) if is_dataclass(target) else {}
