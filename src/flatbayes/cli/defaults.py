"""Descriptions of objects with all their arguments written out.

The parser fills what a description leaves out with what the option had before, where the two classes have an argument
of the same name: `ASAM` would get the radius of `SAM`, the default. With every argument there, nothing is left to do.
"""

from dataclasses import is_dataclass
from typing import Any

from flatbayes.core.spec import get_defaults as arguments_of
from flatbayes.core.spec import import_object
from flatbayes.data.torch_dataset import to_source_spec

DATA_KEYS = frozenset({"data", "source", "ood"})
"""Keys whose value describes a data source, or a torch dataset."""


def fill_defaults(spec: Any) -> Any:
    """The same plain data, every class of flatbayes that it names with its own defaults for what is not given."""
    if isinstance(spec, list):
        return [fill_defaults(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    found = {key: fill_defaults(value) for key, value in spec.items()}
    for key in DATA_KEYS & found.keys():
        if isinstance(found[key], dict) and isinstance(found[key].get("class_path"), str):
            found[key] = fill_defaults(to_source_spec(found[key]))
    given = found.get("init_args")
    if given is None or isinstance(given, dict):
        defaults = get_class_defaults(found.get("class_path"))
        if defaults:
            found["init_args"] = defaults | (given or {})
    return found


def get_class_defaults(path: Any) -> dict[str, Any]:
    """The arguments of a dataclass of flatbayes that have defaults, as plain data; none of other classes."""
    if not isinstance(path, str) or not path.startswith("flatbayes."):
        return {}
    try:
        target = import_object(path)
    except ValueError:
        return {}  # which the parser says better
    return arguments_of(target) if is_dataclass(target) else {}
