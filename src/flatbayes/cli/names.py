"""Names on the command line: `swag` for `flatbayes.posteriors.SWAG`, a path for the source that reads it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from flatbayes import data, flatness, models, posteriors
from flatbayes.cli.completed import defaults_of
from flatbayes.core.spec import to_spec
from flatbayes.data.hub import is_hub_name
from flatbayes.training import schedules

AXES: dict[str, tuple[ModuleType, type | None]] = {
    "data": (data, data.Source),
    "source": (data, data.Source),
    "outside": (data, data.Source),
    "model": (models, None),
    "posterior": (posteriors, posteriors.Posterior),
    "posteriors": (posteriors, posteriors.Posterior),
    "flatness": (flatness, flatness.Flatness),
    "schedule": (schedules, schedules.Schedule),
    "member": (posteriors, posteriors.Posterior),
}
"""What each option names: exports of a module that are final subclasses of a base (or all its classes)."""

SOURCES = ("data", "source", "outside")


def known(axis: str) -> list[str]:
    """The names that an option takes, in order of the alphabet."""
    module, base = AXES[axis]
    names = getattr(module, "__all__", None) or dir(module)
    found = [name for name in names if isinstance(getattr(module, name), type)]
    return sorted(n for n in found if base is None or (issubclass(getattr(module, n), base) and n != base.__name__))


def full_name(axis: str, name: str) -> str:
    """The class path for a name, whatever its case; a dotted path stays what it is, a data path finds its reader.

    Raises:
        ValueError: The name is not known; the message lists those that are.
    """
    module, _ = AXES[axis]
    matches = [one for one in known(axis) if one.lower() == name.lower()]
    if matches:
        return f"{module.__name__}.{matches[0]}"
    if axis in SOURCES and (Path(name).exists() or is_hub_name(name)):
        return json.dumps(to_spec(data.reader_for(name)))
    if name.lstrip().startswith(("{", "[")) or ("." in name and not name.endswith((".csv", ".npz", ".parquet"))):
        return name
    kind = {"source": "data", "outside": "data", "posteriors": "posterior", "member": "posterior"}.get(axis, axis)
    also = "a path to data that exists" if axis in SOURCES else "the dotted path of a class of your own"
    raise ValueError(f"Unknown {kind} {name!r}. Known: {', '.join(known(axis))}; or {also}.")


def _with_defaults(path: str) -> str:
    defaults = defaults_of(path)
    return json.dumps({"class_path": path, "init_args": defaults}) if defaults else path


def with_full_names(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with every name of an axis made a class path."""
    return list(_translated(arguments))


def _translated(arguments: Sequence[str]) -> Iterable[str]:
    axis: str | None = None
    helping = False
    for argument in arguments:
        if axis is not None and not argument.startswith("-"):
            yield full_name(axis, argument) if helping else _value(axis, argument)
            axis = None
            continue
        axis = None
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            helping = option.endswith(".help")
            name = option[2:].removesuffix("+").removesuffix(".help").rpartition(".")[2]
            if name in AXES:
                if equals:
                    yield f"{option}={full_name(name, value) if helping else _value(name, value)}"
                    continue
                axis = name
        yield argument


def _value(axis: str, value: str) -> str:
    inner = value.strip()
    if axis == "posteriors" and inner.startswith("[") and "{" not in inner:
        names = [name.strip().strip("'\"") for name in inner[1:-1].split(",") if name.strip()]
        return f"[{', '.join(_value(axis, name) for name in names)}]"
    path = full_name(axis, value)
    return path if axis in (*SOURCES, "model") else _with_defaults(path)
