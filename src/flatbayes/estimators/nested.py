"""Parameters of parameters, as scikit-learn names them: `flatness__rho` is the field `rho` of `flatness`."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

SEPARATOR = "__"


def get_nested_params(name: str, value: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass by their full names, and theirs in turn; nothing for any other value."""
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    found: dict[str, Any] = {}
    for field in (field for field in fields(value) if field.init):
        full, inner = f"{name}{SEPARATOR}{field.name}", getattr(value, field.name)
        found |= {full: inner} | get_nested_params(full, inner)
    return found


def replace_nested_params(name: str, value: Any, changes: Mapping[str, Any]) -> Any:
    """The dataclass with some fields changed.

    Args:
        name: What it is called, for the message.
        value: The dataclass.
        changes: New values by the names of fields, or of fields of fields.

    Raises:
        ValueError: It has no such fields.
    """
    known = [full.removeprefix(name + SEPARATOR) for full in get_nested_params(name, value)]
    unknown = [path for path in changes if path.partition(SEPARATOR)[0] not in known]
    if unknown:
        raise ValueError(
            f"{name} is {value!r}, which has no parameter {unknown[0]!r}. Valid parameters are: {known}."
        )
    whole = {path: new for path, new in changes.items() if SEPARATOR not in path}
    value = replace(value, **whole)
    deeper: dict[str, dict[str, Any]] = {}
    for path in changes.keys() - whole.keys():
        field, _, rest = path.partition(SEPARATOR)
        deeper.setdefault(field, {})[rest] = changes[path]
    inner = {f: replace_nested_params(f"{name}{SEPARATOR}{f}", getattr(value, f), some) for f, some in deeper.items()}
    return replace(value, **inner)
