"""Models named on the command line: of flatbayes, or of anyone's by dotted path, with a head for the data."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from flatbayes.core.spec import class_path, import_object, instantiate
from flatbayes.models.head import replace_head
from flatbayes.prediction.metadata import read_metadata


def build_with_new_head(path: str, arguments: dict[str, Any], num_outputs: int) -> nn.Module:
    """The network at a dotted path, its last layer made anew if it has another number of outputs.

    Args:
        path: Of a class or function that builds the network, with trained weights or without.
        arguments: For it.
        num_outputs: How many the data needs.
    """
    return replace_head(instantiate({"class_path": path, "init_args": arguments}), num_outputs)


def bind_new_head(spec: dict[str, Any] | None) -> "partial[nn.Module]":
    """What builds the network of a description, with a head for the data.

    Args:
        spec: Of the model named on the command line; None where there is none.

    Raises:
        ValueError: It is a model of flatbayes, which has the right head.
    """
    if spec is None or spec["class_path"].startswith("flatbayes.models."):
        raise ValueError(
            "--new_head is for networks from elsewhere, such as torchvision's with their weights: name one by its "
            "dotted path, --model. Those of flatbayes are made for the data."
        )
    return partial(build_with_new_head, path=spec["class_path"], arguments=spec.get("init_args") or {})


def bind_artifact_model(folder: Path, data_arguments: Collection[str]) -> "partial[nn.Module]":
    """What builds the architecture of a fitted posterior for other data.

    Args:
        folder: The artefact.
        data_arguments: Arguments that the data decide.

    Raises:
        ValueError: It is not one of flatbayes.
    """
    spec = read_metadata(folder)["info"].get("model")
    if not isinstance(spec, dict) or not str(spec.get("class_path")).startswith("flatbayes.models."):
        raise ValueError(f"The model of {folder} is not part of flatbayes: name it by its dotted path, --model.")
    arguments = {name: value for name, value in dict(spec.get("init_args", {})).items() if name not in data_arguments}
    found: partial[nn.Module] = instantiate(
        {"class_path": spec["class_path"], "init_args": arguments},
        package="flatbayes.models",
        base_class=nn.Module,
        bind=True,
    )
    return found


def rebuild_model(spec: Any, path: str) -> "partial[nn.Module]":
    """What builds the network of a run again, from the path that the user gives and the arguments that the run kept.

    Args:
        spec: What the artefact says of its model, plain data of any kind.
        path: The one that the user gives, the only one that is imported.

    Raises:
        ValueError: The run had another model.
    """
    known = spec if isinstance(spec, dict) else {}
    arguments = known.get("init_args", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"The artefact's arguments of its model are {type(arguments).__name__}: it is damaged.")
    if known.get("class_path") != class_path(build_with_new_head):
        return partial(import_object(path), **arguments)
    if arguments.get("path") != path:
        raise ValueError(f"The model of this run is {arguments.get('path')}, got --model {path}.")
    if not isinstance(arguments.get("arguments"), dict) or arguments.keys() - {"path", "arguments", "num_outputs"}:
        raise ValueError("The artefact does not say how its model with a new head is built: it is damaged.")
    return partial(build_with_new_head, **arguments)
