"""Configuration files: YAML with the options of a verb, checked against them before anything is parsed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names, resolve_value
from flatbayes.cli.class_signatures import LIST_OPTION, OPTIMIZER_OPTION
from flatbayes.cli.parsing import load_bounded_yaml
from flatbayes.cli.value_types import accepts, describe_type, is_checkable
from flatbayes.core.names import find_similar, format_suggestion, match_name
from flatbayes.core.renames import explain_option

if TYPE_CHECKING:
    from flatbayes.cli.option_table import OptionTable


def read_config_file(path: str, table: "OptionTable") -> dict[str, Any]:
    """Values of a file by full name of the option, with checked types; its classes are selected in the table."""
    content = _load_mapping(path)
    config: dict[str, Any] = {}
    for key in sorted(content, key=lambda key: key not in CLASS_OPTIONS):  # classes first
        _set_option(config, path, str(key), content[key], table)
    return config


def _load_mapping(path: str) -> Mapping[Any, Any]:
    file = Path(path)
    if not file.is_file():
        files = sorted(file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        similar = find_similar(file.stem, [other.stem for other in files])
        names = " or ".join(str(other) for other in files if other.stem in similar)
        other = "is a pipe or a device, and is not read" if file.exists() else "does not exist"
        kind = "is a folder, not a YAML file" if file.is_dir() else other
        raise ValueError(f"The configuration file {path} {kind}.{f' Did you mean {names}?' if names else ''}")
    try:
        content = load_bounded_yaml(file.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path} is not valid YAML{place}: {error.problem}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is not a YAML file: it is not text.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold options as lines `name: value`, such as `epochs: 60`.")
    return content


def _set_option(config: dict[str, Any], path: str, key: str, value: Any, table: "OptionTable") -> None:
    try:
        name = table.find(key.replace("-", "_"), abbreviated=False)
    except ValueError as error:
        raise ValueError(_explain_key(path, key, str(error), table)) from None
    if name in table.groups() and isinstance(value, dict):
        for option, item in value.items():
            if f"{name}.{option}" not in table.actions:
                raise ValueError(_explain_group_key(path, name, str(option), table))
            _set_option(config, path, f"{name}.{option}", item, table)
        return
    root = name.partition(".")[0]
    if name in table.groups():
        options = ", ".join(
            option.partition(".")[2] for option in table.own_options() if option.startswith(f"{name}.")
        )
        raise ValueError(f"{path}: {name} is a group of options ({options}): write `{name}: {{option: value}}`.")
    if name in {*table.class_options(), LIST_OPTION}:
        value = check_class_value(path, name, value, table)
    elif root in table.class_options():
        option, _, argument = name.partition(".")
        spec = config.get(option)
        if not isinstance(spec, dict):
            spec = {"class_path": table.selected[option], "init_args": {}}
        _set_nested(spec.setdefault("init_args", {}), argument, value)
        config[option] = resolve_value(spec, option)
        return
    else:
        hint = table.hint(name)
        if is_checkable(hint) and not accepts(hint, value):
            raise ValueError(f"{path}: {name} must be {describe_type(hint)}, got {value!r}.")
    group, dot, option = name.partition(".")
    if dot:
        config.setdefault(group, {})[option] = value
    else:
        config[name] = value


def _set_nested(arguments: dict[str, Any], name: str, value: Any) -> None:
    first, dot, rest = name.partition(".")
    if dot:
        _set_nested(arguments.setdefault(first, {}).setdefault("init_args", {}), rest, value)
    else:
        arguments[first] = value


def check_class_value(path: str, option: str, value: Any, table: "OptionTable") -> Any:
    """The spec of a class in a file, with names and types of its arguments checked.

    Args:
        path: Path of the file, for messages.
        option: Name of the option.
        value: A name, a mapping with `class_path` and `init_args`, a mapping `{name: arguments}`, or a mapping of
            arguments of the default class.
        table: Options of the verb; the class is selected in it.

    Raises:
        ValueError: A class or argument is unknown, or has a wrong type.
    """
    if option == LIST_OPTION:
        items = value if isinstance(value, list) else [value]
        specs = [resolve_value(_expand(item, option), option) for item in items]
        table.check_spec(option, specs, f"{path}: ")
        return specs
    if value is None or isinstance(value, bool | int | float | list):
        if value is None and option in ("model", OPTIMIZER_OPTION, "ood"):
            return None
        raise ValueError(f"{path}: {option} must be a name such as {_example_name(option)}, got {value!r}.")
    spec = _expand(value, option)
    if isinstance(spec, dict) and "class_path" not in spec and option in table.selected:
        spec = {"class_path": table.selected[option], "init_args": spec}
    is_complete = not isinstance(spec, dict) or (
        isinstance(spec.get("class_path"), str) and isinstance(spec.get("init_args"), dict | None)
    )
    if not is_complete:
        raise ValueError(
            f"{path}: {option} must be a name such as {_example_name(option)}, or `{option}: {{class_path: "
            f"{_example_name(option)}, init_args: {{option: value}}}}`; got {value!r}."
        )
    try:
        resolved = resolve_value(spec, option)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    table.select(option, resolved)
    table.check_spec(option, resolved, f"{path}: ")
    return resolved


def _expand(value: Any, option: str) -> Any:
    """`{class_path: sam, init_args: {rho: 0.1}}` for `{sam: {rho: 0.1}}`."""
    if isinstance(value, dict) and len(value) == 1 and option in CLASS_OPTIONS:
        [(name, arguments)] = value.items()
        if match_name(str(name), list_names(option)) and isinstance(arguments, dict | None):
            return {"class_path": name, "init_args": arguments or {}}
    return value


def _example_name(option: str) -> str:
    names = {"data": "digits", "flatness": "SAM", "posterior": "SWAG", OPTIMIZER_OPTION: "torch.optim.SGD"}
    return names.get(option) or list_names(option)[-1]


def _explain_key(path: str, key: str, message: str, table: "OptionTable") -> str:
    renamed = explain_option(key, table.verb)
    if renamed is not None:
        return f"{path}: flatbayes {table.verb} has no option {key}. {renamed}"
    return f"{path}: {re.sub('(?<!fit )(?<!tune )(?<!compare )--', '', message)}"


def _explain_group_key(path: str, group: str, option: str, table: "OptionTable") -> str:
    options = [name.partition(".")[2] for name in table.own_options() if name.startswith(f"{group}.")]
    renamed = explain_option(f"{group}.{option}", table.verb)
    return (
        f"{path}: {group} has no option {option}. {f'{renamed} ' if renamed else ''}"
        f"{format_suggestion(option, options)}Its options: {', '.join(options)}."
    )
