"""Short names of classes in commands and configuration files: `swag` for `flatbayes.posteriors.SWAG`.

jsonargparse resolves exact class names, nested classes and lists by itself. Added here:

* names in any letter case, and paths of data (`--data images/`), on the command line and in YAML,
* dotted paths of torch datasets as data, `--data torchvision.datasets.CIFAR10 --data.root DIR`,
* an error for an unknown name that lists the known ones, or gives the new name of a renamed class,
* the defaults of the named class: jsonargparse keeps arguments of the option's previous class where both classes have
  an argument of that name, so `--flatness ASAM` would get the radius of the default `SAM`. With every argument of the
  new class written out, nothing is kept.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from flatbayes import data, flatness, models, posteriors
from flatbayes.core.names import find_similar, format_suggestion, list_classes, match_name
from flatbayes.core.renames import REMOVED_OBJECTS, RENAMED_OBJECTS, explain_name, explain_option
from flatbayes.core.spec import class_path, get_defaults, import_object, to_spec
from flatbayes.data.hub import is_hub_name
from flatbayes.data.torch_dataset import to_source_spec
from flatbayes.training import schedules

CLASS_OPTIONS: dict[str, tuple[ModuleType, type | None]] = {
    "data": (data, data.DataSource),
    "source": (data, data.DataSource),
    "ood": (data, data.DataSource),
    "model": (models, None),
    "posterior": (posteriors, posteriors.Posterior),
    "posteriors": (posteriors, posteriors.Posterior),
    "member": (posteriors, posteriors.Posterior),
    "flatness": (flatness, flatness.Flatness),
    "schedule": (schedules, schedules.Schedule),
    "optimizer": (torch.optim, torch.optim.Optimizer),
}
"""Option -> module and base class of the classes that it takes; None takes every class of the module."""

AXES = ("posterior", "flatness", "model", "data", "schedule")
"""Options whose classes are told apart in messages."""

DATA_OPTIONS = ("data", "source", "ood")
IN_MEMORY_SOURCES = (data.Arrays, data.FixedSplits)
"""Sources of what a program holds in memory, which no text can name."""
DATA_FILE_SUFFIXES = (
    *(".csv", ".tsv", ".npz", ".parquet", ".gz", ".bz2", ".zst", ".lz4"),
    *(".xlsx", ".xls", ".ods", ".txt", ".dat", ".json", ".jsonl", ".npy", ".feather", ".h5", ".zip", ".tar"),
)
"""Suffixes of files, also of some that no source reads, in which no dotted path of a class ends."""

RUN_FOLDER_VERBS = ("calibrate", "certify", "diagnose", "evaluate", "check", "shift")
"""Verbs whose option `--data` repeats the dotted path of a run's torch dataset instead of naming a data source."""

TORCH_DATASET_FIELDS = frozenset(f.name for f in fields(data.TorchDataset))


def list_names(option: str) -> list[str]:
    """Class names that an option takes, in alphabetical order, without sources of data in memory."""
    module, base = CLASS_OPTIONS[option]
    classes: dict[str, type] = list_classes(module, base or object)
    return [name for name, value in classes.items() if value not in IN_MEMORY_SOURCES]


def _is_file_name(name: str) -> bool:
    """Whether a name ends like a file; `flatbayes.data.Npz` is a class."""
    return name.lower().endswith(DATA_FILE_SUFFIXES) and not name.startswith("flatbayes.")


def resolve_name(option: str, name: str) -> str:
    """Class path for a name in any letter case; a dotted path is returned as it is.

    `option` is a key of `CLASS_OPTIONS`.

    Raises:
        ValueError: The name is unknown, or the class was renamed or removed; the message says what to write.
    """
    module, _ = CLASS_OPTIONS[option]
    known_name = match_name(name, list_names(option))
    if known_name is not None:
        return f"{module.__name__}.{known_name}"
    if "." in name and not _is_file_name(name):
        explanation = explain_name(name)
        if explanation is not None:
            raise ValueError(explanation)
        return _normalize_path(name) if name.startswith("flatbayes.") else name
    axis = {"source": "data", "ood": "data", "posteriors": "posterior", "member": "posterior"}.get(option, option)
    if option in DATA_OPTIONS and ("/" in name or _is_file_name(name)):
        raise ValueError(_explain_missing_path(name))
    owner = next((other for other in AXES if other != axis and match_name(name, list_names(other))), None)
    if owner is not None:
        raise ValueError(f"{name} is a {owner}, not a {axis}: write --{owner} {name}.")
    alternative = "a path to data that exists" if option in DATA_OPTIONS else "the dotted path of a class of your own"
    old_names = [*RENAMED_OBJECTS.get(module.__name__, {}), *(path.rpartition(".")[2] for path in REMOVED_OBJECTS)]
    old_name = match_name(name, old_names)
    explanation = None if old_name is None else explain_name(old_name)
    hint = f"{explanation} " if explanation else format_suggestion(name, list_names(option))
    raise ValueError(f"Unknown {axis} {name!r}. {hint}Known: {', '.join(list_names(option))}; or {alternative}.")


def _explain_missing_path(path: str) -> str:
    folder = Path(path).parent
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    stems = find_similar(Path(path).stem, [entry.stem for entry in entries])
    similar = [entry for entry in entries if entry.stem in stems]
    suggestion = f" Did you mean {' or '.join(map(str, similar))}?" if similar else ""
    place = "" if folder.is_dir() else f" Its folder {folder} does not exist either."
    advice = f"{suggestion or place} Give a path to data that exists."
    return f"Unknown data {path!r}: there is no such file or folder.{advice}"


def resolve_value(value: Any, option: str = "") -> Any:
    """Plain data with every class name resolved, and every class of flatbayes with all its arguments.

    `option` is the name of the option without the groups before it, empty for a whole file.

    Raises:
        ValueError: A name is unknown.
    """
    if isinstance(value, list):
        return [resolve_value(item, option) for item in value]
    if isinstance(value, str) and option in CLASS_OPTIONS:
        if option in DATA_OPTIONS and _is_data_path(option, value):
            return resolve_value(to_spec(data.find_reader(value)))
        spec = resolve_value({"class_path": value}, option)
        return spec if "init_args" in spec else spec["class_path"]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: resolve_value(item, key) for key, item in value.items()}
    path, arguments = value["class_path"], value.get("init_args")
    if not isinstance(path, str) or not isinstance(arguments, dict | None):
        return value  # the parser reports it
    resolved = {**value, "class_path": resolve_name(option, path)} if option in CLASS_OPTIONS else dict(value)
    if option in DATA_OPTIONS:
        resolved = to_source_spec(resolved)
    if not resolved["class_path"].startswith("flatbayes."):
        return resolved
    given = {key: resolve_value(item, key) for key, item in (resolved.get("init_args") or {}).items()}
    arguments = get_class_defaults(resolved["class_path"]) | given
    return {**resolved, "init_args": arguments} if arguments else resolved


def resolve_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which the values of all `CLASS_OPTIONS` are resolved.

    Raises:
        ValueError: A name is unknown.
    """
    is_run_verb = bool(arguments) and arguments[0] in RUN_FOLDER_VERBS
    class_options = CLASS_OPTIONS.keys() - ({"data"} if is_run_verb else set())
    resolved: list[str] = []
    torch_dataset_flags: set[str] = set()

    def resolve(flag: str, text: str) -> str:
        value = _resolve_text(flag, text)
        if isinstance(value, dict) and value["class_path"] == class_path(data.TorchDataset):
            torch_dataset_flags.add(flag)
        return value if isinstance(value, str) else json.dumps(value)

    pending_flag = ""  # a class option whose value is the next argument
    for argument in arguments:
        if pending_flag and not argument.startswith("-"):
            resolved.append(resolve(pending_flag, argument))
            pending_flag = ""
            continue
        pending_flag = ""
        if not argument.startswith("--"):
            resolved.append(argument)
            continue
        flag, equals, text = argument.partition("=")
        flag = _add_options_key(flag, torch_dataset_flags)
        if _get_option(flag) in class_options:
            text = resolve(flag, text) if equals else text
            pending_flag = "" if equals else flag
        resolved.append(f"{flag}{equals}{text}")
    return resolved


def get_class_defaults(path: str) -> dict[str, Any]:
    """Default arguments of a dataclass of flatbayes as plain data; empty for other classes and unknown paths."""
    if not path.startswith("flatbayes."):
        return {}
    try:
        target = import_object(path)
    except ValueError:
        return {}  # the parser reports the path
    return get_defaults(target) if is_dataclass(target) else {}


def explain_renames(arguments: Sequence[str], message: str) -> list[str]:
    """Sentences on options of flatbayes 0.1 that a failed command used."""
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    quoted = re.findall(r"['\"]([\w.]+)['\"]", message)
    verb = arguments[0]
    for names in (given, [key.removeprefix(f"{verb}.") for key in quoted]):
        sentences = [explain_option(name, verb) for name in dict.fromkeys(names)]
        if any(sentences):
            return [sentence for sentence in sentences if sentence]
    return []


def _normalize_path(path: str) -> str:
    """`flatbayes.models.MLP` for `flatbayes.MLP`; a path that leads nowhere is returned for the parser to report."""
    try:
        return class_path(import_object(path))
    except (ValueError, TypeError):
        return path


def _get_option(flag: str) -> str:
    """`member` for `--posterior.member`, `posteriors` for `--posteriors+`, `data` for `--data.help`."""
    return flag[2:].removesuffix("+").removesuffix(".help").rpartition(".")[2]


def _add_options_key(flag: str, torch_dataset_flags: set[str]) -> str:
    """`--data.options.root` for `--data.root` if `--data` is a torch dataset, whose own arguments are `options`."""
    for prefix in torch_dataset_flags:
        key = flag.removeprefix(f"{prefix}.")
        if key != flag and key.partition(".")[0] not in {*TORCH_DATASET_FIELDS, "help"}:
            return f"{prefix}.options.{key}"
    return flag


def _resolve_text(flag: str, text: str) -> Any:
    option = _get_option(flag)
    value: Any = text
    if text.lstrip().startswith(("{", "[")):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            return text  # the parser reports it
    value = resolve_value(value, option)
    return value["class_path"] if flag.endswith(".help") and isinstance(value, dict) else value


def _is_data_path(option: str, text: str) -> bool:
    is_name = match_name(text, list_names(option)) is not None
    return not is_name and (Path(text).exists() or is_hub_name(text))
