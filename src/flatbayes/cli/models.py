"""Factories of models: a model of flatbayes, or the dotted path of another one, with a new last layer if needed."""

import importlib
import inspect
import shlex
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from torch import nn

from flatbayes import models
from flatbayes.cli.parsing import to_plain_spec
from flatbayes.core.files import read_json
from flatbayes.core.names import find_similar, format_suggestion
from flatbayes.core.renames import explain_name
from flatbayes.core.signatures import read_signature, write_annotations_as_text
from flatbayes.core.spec import class_path, import_object, instantiate, is_allowed
from flatbayes.experiments.run_folder import CONFIG_FILE
from flatbayes.models.head import replace_head
from flatbayes.prediction.metadata import read_metadata
from flatbayes.training.config import FINE_TUNING
from flatbayes.training.network_defaults import choose_config

MAX_LISTED_NAMES = 12
"""Largest number of names of a module in a message."""


def check_model_path(path: str) -> str:
    """The dotted path of a model, after it was imported; a name without dots is returned as it is.

    A function without a return annotation that can be evaluated gets one, by which the parser sees that it builds
    a network, and so do parameters without one.

    Raises:
        ValueError: It cannot be imported, or builds no network; the message has the reason.
    """
    if path.endswith(".py") or "/" in path or ":" in path:
        module = Path(path.partition(":")[0]).with_suffix("").as_posix().strip("./").replace("/", ".")
        name = path.partition(":")[2] or "Net"
        raise ValueError(f"--model {path}: write module and class with a dot between them, such as {module}.{name}.")
    module_path, _, name = path.rpartition(".")
    if not module_path:
        if Path(f"{path}.py").is_file() and path not in list_module_classes(models):
            raise ValueError(f"--model {path} is a module: add the name of the class, such as {path}.Net.")
        return path
    explanation = explain_name(path) if path.startswith("flatbayes.") else None
    if explanation is not None:
        raise ValueError(explanation)
    target = getattr(_import_module(path, module_path), name, None)
    if target is None:
        names = list_module_classes(importlib.import_module(module_path))
        listed = f"It has {', '.join(names[:MAX_LISTED_NAMES])}." if names else "It has no networks."
        if len(names) == 1 and find_similar(name, names):
            listed = ""
        raise ValueError(f"Module {module_path} has no {name}. {format_suggestion(name, names)}{listed}".rstrip())
    is_network_class = isinstance(target, type) and issubclass(target, nn.Module)
    if not is_network_class and not (callable(target) and not isinstance(target, type | nn.Module)):
        kind = "is a network" if isinstance(target, nn.Module) else "is not a subclass of torch.nn.Module"
        raise ValueError(f"{path} {kind}: --model takes a class, or a function that builds a network.")
    write_annotations_as_text(target)
    if inspect.isfunction(target):
        annotate_return(target)
    annotate_parameters(target if inspect.isfunction(target) else target.__init__)
    return path


def annotate_return(function: Callable[..., Any]) -> None:
    """Let a function without a return annotation, or with annotations that cannot be evaluated, return a network."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):  # of types that are imported for type checkers only
        hints = {}
    if "return" not in hints:
        function.__annotations__["return"] = nn.Module


def annotate_parameters(function: Any) -> None:
    """Give the parameters of a user's function that have neither an annotation nor a default the type Any.

    The parser refuses such parameters; with Any, it reads their values as YAML.
    """
    if not inspect.isfunction(function):
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in list(read_signature(function).parameters.items()):
        if name != "self" and parameter.kind in kinds and parameter.default is parameter.empty:
            function.__annotations__.setdefault(name, Any)


def has_trained_model(spec: Any) -> bool:
    """Whether the model is a function outside flatbayes that builds a network with trained weights."""
    if spec is None or spec["class_path"].startswith("flatbayes.models."):
        return False
    return choose_config(instantiate(to_plain_spec(spec), bind=True), None) == FINE_TUNING


def list_module_classes(module: ModuleType) -> list[str]:
    """Names of networks, and of the functions of a module itself."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            (isinstance(value, type) and issubclass(value, nn.Module))
            or (inspect.isfunction(value) and value.__module__ == module.__name__)
        )
    )


def _import_module(path: str, module_path: str) -> ModuleType:
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_path}.".startswith(f"{error.name}."):
            raise ValueError(f"Module {module_path} cannot be imported: {error}.") from error
        similar = format_suggestion(error.name, [file.stem for file in Path().glob("*.py")])
        raise ValueError(
            f"--model {path}: there is no module {error.name}, neither a file {error.name}.py in this folder nor an "
            f"installed package. {similar}".rstrip()
        ) from error
    except Exception as error:  # the module is the user's own code
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        place = f" in line {line}" if line else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(
            f"Module {module_path} cannot be imported: {type(error).__name__}{place}: {reason}."
        ) from error


def build_with_new_head(path: str, arguments: dict[str, Any], num_outputs: int) -> nn.Module:
    """The network that a dotted path builds, with a new last layer if the number of outputs differs."""
    return replace_head(instantiate({"class_path": path, "init_args": arguments}), num_outputs)


def bind_new_head(spec: dict[str, Any] | None) -> "partial[nn.Module]":
    """Factory of a network with a new last layer for the data.

    Raises:
        ValueError: There is no model, or it is one of flatbayes, which has the right number of outputs.
    """
    if spec is None or spec["class_path"].startswith("flatbayes.models."):
        raise ValueError(
            "--new_head is for models outside flatbayes, such as those of torchvision with their weights: give the "
            "dotted path of one, --model. Models of flatbayes are built with the outputs of the data."
        )
    return partial(build_with_new_head, path=spec["class_path"], arguments=spec.get("init_args") or {})


def bind_artifact_model(folder: Path, data_arguments: Collection[str]) -> "partial[nn.Module]":
    """Factory of the architecture of a fitted posterior, for other data.

    `data_arguments` are set from the data instead.

    Raises:
        ValueError: The model is not part of flatbayes.
    """
    spec = read_metadata(folder)["info"].get("model")
    if not isinstance(spec, dict) or not str(spec.get("class_path")).startswith("flatbayes.models."):
        raise ValueError(f"The model of {folder} is not part of flatbayes: name it by its dotted path, --model.")
    arguments = {name: value for name, value in dict(spec.get("init_args", {})).items() if name not in data_arguments}
    factory: partial[nn.Module] = instantiate(
        {"class_path": spec["class_path"], "init_args": arguments},
        package="flatbayes.models",
        base_class=nn.Module,
        bind=True,
    )
    return factory


def format_run_command(verb: str, folder: Path, info: Mapping[str, Any], options: str = "") -> str:
    """A command on a run that a shell can take: `flatbayes evaluate 'runs/my run' --model nets.Net`.

    A torch dataset is named, and the model in `info` if it is not part of flatbayes.
    """
    spec = info.get("model")
    path = str(spec.get("class_path")) if isinstance(spec, dict) else "flatbayes.models."
    if path == class_path(build_with_new_head) and isinstance(spec, dict):
        path = str(spec.get("init_args", {}).get("path"))
    model = "" if path.startswith("flatbayes.models.") else f" --model {path}"
    dataset = None if verb == "predict" else read_data_spec(folder)["init_args"].get("dataset")
    data = f" --data {dataset}" if isinstance(dataset, str) else ""
    return f"flatbayes {verb} {shlex.quote(str(folder))}{model}{data}{options}"


def read_data_spec(folder: Path) -> dict[str, Any]:
    """The spec of the data of a run, whose `init_args` are a dictionary; both are empty where there is none."""
    file = folder / CONFIG_FILE
    config = read_json(file) if file.is_file() else None
    data = config.get("data") if isinstance(config, dict) else None
    spec = data if isinstance(data, dict) else {}
    arguments = spec.get("init_args")
    return {**spec, "init_args": arguments if isinstance(arguments, dict) else {}}


def rebuild_model(spec: Any, path: str | None, trusted: Collection[str]) -> "partial[nn.Module] | None":
    """Factory of the network of a run, from the path that the user gives and the arguments in the artefact.

    The spec is untrusted data, and `path` that of `--model`. Nothing is imported but `flatbayes.models` and what
    `trusted` names, the modules and paths of `--trust`.

    Returns:
        None for a model of flatbayes, if the user gives no path.

    Raises:
        ValueError: The run had another model, it is outside flatbayes and not named by the user, or the spec is
            damaged.
    """
    model_spec = spec if isinstance(spec, dict) else {}
    arguments = model_spec.get("init_args", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"The arguments of the model in the artefact are {type(arguments).__name__}: it is damaged.")
    has_new_head = model_spec.get("class_path") == class_path(build_with_new_head)
    stored_path = arguments.get("path") if has_new_head else model_spec.get("class_path")
    if path is None:
        if not model_spec or str(stored_path).startswith("flatbayes.models."):
            return None
        if not is_allowed(stored_path, trusted):
            shown = str(stored_path)[:200]
            raise ValueError(
                f"The model of this run is {shown}, which is not part of flatbayes, and nothing is imported because "
                f"a file says so. If you trust it: --model {shown}, or --trust with its module."
            )
        path = str(stored_path)
    if has_new_head:
        if stored_path != path:
            raise ValueError(f"The model of this run is {stored_path}, got --model {path}.")
        unknown = arguments.keys() - {"path", "arguments", "num_outputs"}
        if unknown or not isinstance(arguments.get("arguments"), dict):
            raise ValueError("The artefact does not describe its model with a new head completely: it is damaged.")
    built_arguments = {
        name: instantiate(value, package="flatbayes.models", base_class=nn.Module, allowed_paths=[*trusted, path])
        for name, value in (arguments["arguments"] if has_new_head else arguments).items()
    }
    if not has_new_head:
        return partial(import_object(path), **built_arguments)
    sizes = {name: value for name, value in arguments.items() if name == "num_outputs"}
    return partial(_build_and_replace_head, path=path, arguments=built_arguments, **sizes)


def _build_and_replace_head(path: str, arguments: dict[str, Any], num_outputs: int) -> nn.Module:
    return replace_head(import_object(path)(**arguments), num_outputs)
