"""Names on the command line: `swag` for `flatbayes.posteriors.SWAG`, a path for the source that reads it."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from flatbayes import data, flatness, models, posteriors
from flatbayes.cli.defaults import DATA_KEYS, get_class_defaults
from flatbayes.core.renames import REMOVED_OBJECTS, RENAMED_OBJECTS, explain_name, explain_option
from flatbayes.core.spec import class_path, to_spec
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
    "flatness": (flatness, flatness.Flatness),
    "schedule": (schedules, schedules.Schedule),
    "member": (posteriors, posteriors.Posterior),
}
"""What each option names: exports of a module that are final subclasses of a base (or all its classes)."""

RUN_FOLDER_VERBS = ("certify", "diagnose", "evaluate", "shift")
"""Verbs whose option `--data` repeats the dotted path of a run's torch dataset, instead of naming a source."""
TORCH_DATASET_FIELDS = {f.name for f in fields(data.TorchDataset)}


def explain_renames(arguments: Sequence[str], message: str) -> list[str]:
    """Sentences on options of flatbayes 0.1 that a failed command used.

    Args:
        arguments: The command line, the verb first.
        message: The parser's error, which quotes the keys of a configuration file.
    """
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    keys = re.findall(r"['\"]([\w.]+)['\"]", message)
    verb = arguments[0]
    for names in (given, [key.removeprefix(f"{verb}.") for key in keys]):
        sentences = [explain_option(name, verb) for name in dict.fromkeys(names)]
        if any(sentences):
            return [sentence for sentence in sentences if sentence]
    return []


def list_names(option: str) -> list[str]:
    """The names that an option takes, in order of the alphabet."""
    module, base = CLASS_OPTIONS[option]
    names = getattr(module, "__all__", None) or dir(module)
    found = [name for name in names if isinstance(getattr(module, name), type)]
    return sorted(n for n in found if base is None or (issubclass(getattr(module, n), base) and n != base.__name__))


def resolve_name(option: str, name: str) -> str:
    """The class path for a name, whatever its case; a dotted path stays what it is, a data path finds its reader.

    Raises:
        ValueError: The name is not known; the message lists those that are.
    """
    module, _ = CLASS_OPTIONS[option]
    matches = [one for one in list_names(option) if one.lower() == name.lower()]
    if matches:
        return f"{module.__name__}.{matches[0]}"
    if option in DATA_KEYS and (Path(name).exists() or is_hub_name(name)):
        return json.dumps(to_spec(data.find_reader(name)))
    if option in DATA_KEYS and is_dotted_path(name) and not name.endswith((".csv", ".npz", ".parquet")):
        return json.dumps(to_source_spec({"class_path": name}))
    if name.lstrip().startswith(("{", "[")) or ("." in name and not name.endswith((".csv", ".npz", ".parquet"))):
        return name
    kind = {"source": "data", "ood": "data", "posteriors": "posterior", "member": "posterior"}.get(option, option)
    also = "a path to data that exists" if option in DATA_KEYS else "the dotted path of a class of your own"
    old_names = [*RENAMED_OBJECTS.get(module.__name__, {}), *(path.rpartition(".")[2] for path in REMOVED_OBJECTS)]
    explanation = next((explain_name(old) for old in old_names if old.lower() == name.lower()), None)
    raise ValueError(
        f"Unknown {kind} {name!r}. {f'{explanation} ' if explanation else ''}Known: {', '.join(list_names(option))}; "
        f"or {also}."
    )


def is_dotted_path(name: str) -> bool:
    """Whether a value is the dotted path of a class outside flatbayes."""
    return bool(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name)) and not name.startswith("flatbayes.")


def _expand_defaults(path: str) -> str:
    defaults = get_class_defaults(path)
    return json.dumps({"class_path": path, "init_args": defaults}) if defaults else path


def resolve_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with every name of an axis made a class path."""
    return list(_resolve_each(arguments))


def _resolve_each(arguments: Sequence[str]) -> Iterable[str]:
    repeats_data = bool(arguments) and arguments[0] in RUN_FOLDER_VERBS
    torch_dataset_options: list[str] = []
    pending: str | None = None  # class option whose value is the next argument
    for argument in arguments:
        if pending is not None and not argument.startswith("-"):
            value = _resolve_option(pending, argument)
            if _is_torch_dataset(value):
                torch_dataset_options.append(pending)
            yield value
            pending = None
            continue
        pending = None
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            option = _add_options_key(option, torch_dataset_options)
            name = option[2:].removesuffix("+").removesuffix(".help").rpartition(".")[2]
            if name in CLASS_OPTIONS and not (repeats_data and name == "data"):
                if not equals:
                    pending = option
                else:
                    value = _resolve_option(option, value)
                    if _is_torch_dataset(value):
                        torch_dataset_options.append(option)
        yield f"{option}{equals}{value}"


def _resolve_option(option: str, value: str) -> str:
    """The value of a class option, `--data` or `--data.help`, as the parser takes it."""
    name = option[2:].removesuffix("+").removesuffix(".help").rpartition(".")[2]
    if not option.endswith(".help"):
        return _resolve_value(name, value)
    path = resolve_name(name, value)
    return class_path(data.TorchDataset) if _is_torch_dataset(path) else path


def _is_torch_dataset(value: str) -> bool:
    return value.startswith("{") and json.loads(value).get("class_path") == class_path(data.TorchDataset)


def _add_options_key(option: str, torch_dataset_options: Sequence[str]) -> str:
    """Turn `--data.root` into `--data.options.root` if `--data` is a torch dataset whose arguments hold `root`."""
    for prefix in torch_dataset_options:
        if option.startswith(f"{prefix}."):
            key = option.removeprefix(f"{prefix}.")
            if key.partition(".")[0] not in {*TORCH_DATASET_FIELDS, "help"}:
                return f"{prefix}.options.{key}"
    return option


def _resolve_value(option: str, value: str) -> str:
    inner = value.strip()
    if option == "posteriors" and inner.startswith("[") and "{" not in inner:
        names = [name.strip().strip("'\"") for name in inner[1:-1].split(",") if name.strip()]
        return f"[{', '.join(_resolve_value(option, name) for name in names)}]"
    path = resolve_name(option, value)
    return path if option in (*DATA_KEYS, "model") else _expand_defaults(path)
