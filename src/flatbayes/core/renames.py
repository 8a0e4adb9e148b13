"""Names of flatbayes 0.1 and what they are called since 0.2.

Artefacts and run folders of 0.1 hold class paths and arguments under their old names; `core.spec` translates them
before it imports anything. Code, configuration files and commands with an old name get an error that gives the new
one.
"""

import sys
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

_TABLES = tomllib.loads(Path(__file__).with_name("renames.toml").read_text(encoding="utf-8"))

RENAMED_PACKAGES: dict[str, str] = _TABLES["packages"]
"""Old package -> new package."""

RENAMED_OBJECTS: dict[str, dict[str, str]] = _TABLES["objects"]
"""Package (its new name) -> old name of an exported class or function -> new name."""

RENAMED_ARGUMENTS: dict[str, dict[str, str]] = _TABLES["arguments"]
"""New class path -> old name of an argument -> new name; a dotted name is an option of a group."""

RENAMED_PARAMETERS: dict[str, dict[str, str]] = _TABLES["functions"]
"""New path of a function -> old name of a parameter -> new name."""

RENAMED_OPTIONS: dict[str, dict[str, str]] = _TABLES["options"]
"""Command -> old name of an option of its own (without dashes) -> new name; those of classes are in
`RENAMED_ARGUMENTS`."""

RENAMED_VALUES: dict[str, dict[str, str]] = _TABLES["values"]
"""New name of an argument -> old value -> new value."""

REMOVED_OBJECTS: dict[str, str] = _TABLES["removed"]
"""Class path of what 0.2 no longer has -> what to do instead."""


def translate_path(path: str) -> str:
    """The class path as it is called in this version; a path without an old name comes back unchanged."""
    package, _, name = path.rpartition(".")
    package = RENAMED_PACKAGES.get(package, package)
    if package == "flatbayes":
        return f"flatbayes.{_TOP_LEVEL.get(name, name)}"
    name = RENAMED_OBJECTS.get(package, {}).get(name, name)
    return f"{package}.{name}" if package else name


def translate_spec(path: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A class path and its arguments as they are called in this version.

    Returns:
        The new path, and the arguments by their new names, in the same order. An argument under its new name has
        priority over the same one under its old name.
    """
    path = translate_path(path)
    renamed = {old: new for old, new in RENAMED_ARGUMENTS.get(path, {}).items() if "." not in new}
    return path, {
        renamed.get(name, name): value for name, value in arguments.items() if renamed.get(name) not in arguments
    }


def translate_training_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `TrainingConfig` from the run folder of any version, in the form that `with_options` takes.

    Those of a group are in a mapping, or in folders of 0.1 at the top.
    """
    renamed = RENAMED_ARGUMENTS["flatbayes.training.TrainingConfig"]
    translated = {}
    for name, value in options.items():
        is_group = isinstance(value, Mapping)  # `precision` is an option in 0.1 and a group in 0.2
        new_value = RENAMED_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        translated[name if is_group else renamed.get(name, name)] = new_value
    return translated


def explain_name(name: str) -> str | None:
    """One sentence about a class or function that has another name in this version, or none.

    Returns:
        Such as `Recipe was renamed to TrainingConfig in 0.2.`; None if the name is not an old one.
    """
    bare = name.rpartition(".")[2]
    if name in REMOVED_OBJECTS or f"flatbayes.data.{name}" in REMOVED_OBJECTS:
        return f"{bare} was removed in 0.2: {REMOVED_OBJECTS.get(name) or REMOVED_OBJECTS[f'flatbayes.data.{name}']}."
    new = translate_path(name).rpartition(".")[2] if "." in name else _ANYWHERE.get(name, name)
    return f"{bare} was renamed to {new} in 0.2." if new != bare else None


def explain_option(option: str, command: str | None = None, path: str | None = None) -> str | None:
    """One sentence about an option or a key of a configuration that has another name in this version, or none.

    Args:
        option: Its name without dashes, such as `part` or `flatness.part`.
        command: The command that was given, whose own options are looked up.
        path: Class path that the option is an argument of; None looks in all classes.

    Returns:
        Such as `flatness.part was renamed to flatness.ascent_batch_fraction in 0.2.`; None if it is not an old name.
    """
    group, dot, name = option.rpartition(".")
    if not group and command is not None and name in RENAMED_OPTIONS.get(command, {}):
        new = RENAMED_OPTIONS[command][name]
    elif path is not None:
        new = RENAMED_ARGUMENTS.get(translate_path(path), {}).get(name, name)
    else:
        new = " or ".join(sorted({names[name] for names in _OPTION_GROUPS if name in names})) or name
    if new in (name, option):  # the latter has its new group already
        return None
    return f"{option} was renamed to {'' if '.' in new else f'{group}{dot}'}{new} in 0.2."


def explain_old_arguments(package: str, exports: Collection[str] | None = None) -> None:
    """Let the classes and functions of a package answer an argument of version 0.1 with its new name.

    Args:
        package: Name of an imported package; what it exports is wrapped where an argument was renamed.
        exports: Names that it has imported now; None for all that it has.
    """
    module = sys.modules[package]
    for path, names in {**RENAMED_ARGUMENTS, **RENAMED_PARAMETERS}.items():
        owner, _, name = path.rpartition(".")
        if owner != package or name not in (vars(module) if exports is None else exports):
            continue
        target = vars(module)[name]
        if isinstance(target, type) and target.__init__ is not object.__init__:  # type: ignore[misc]
            setattr(target, "__init__", _explain_calls(target.__init__, name, names))  # type: ignore[misc]  # noqa: B010
        elif callable(target):
            wrapped = _explain_calls(target, name, names)
            setattr(module, name, wrapped)
            setattr(sys.modules[target.__module__], name, wrapped)  # pickling looks there


def _explain_calls(function: Callable[..., Any], owner: str, names: Mapping[str, str]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for old in kwargs.keys() & names.keys():
            new = names[old]
            if old == new.partition(".")[0]:
                continue  # an option that is a group now
            group, _, option = new.rpartition(".")
            place = f"{option} of {group}={{...}}" if group else new
            raise TypeError(f"{owner} has no argument {old!r}: it was renamed to {place} in 0.2.")
        return function(*args, **kwargs)

    return call


_TOP_LEVEL = {
    old: new
    for package in ("core", "data", "flatness", "posteriors", "training")
    for old, new in RENAMED_OBJECTS[f"flatbayes.{package}"].items()
    if old in {"Course", "Dataset", "Every", "Late", "Part", "Point", "Random", "Recipe", "Smoothing", "Source"}
}
_ANYWHERE = {old: new for names in RENAMED_OBJECTS.values() for old, new in names.items()} | _TOP_LEVEL
_OPTION_GROUPS = [
    names
    for path, names in RENAMED_ARGUMENTS.items()
    if not path.startswith(("flatbayes.certification.", "flatbayes.experiments."))
]
