"""Every public class has a repr under 12 lines of a terminal, however much its instances hold."""

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import flatbayes

MAX_LINES, COLUMNS = 12, 100
NUM_ENTRIES, NUM_OBJECTS = 200, 20
EXAMPLES = {
    flatbayes.calibration.ConformalScore: flatbayes.calibration.LAC(),
    flatbayes.DataSource: flatbayes.Digits(),
    flatbayes.Flatness: flatbayes.SAM(),
    flatbayes.Likelihood: flatbayes.Gaussian(),
    flatbayes.Posterior: flatbayes.SWAG(),
    flatbayes.Schedule: flatbayes.SWALinear(),
}
"""Fields of abstract types."""
SHOWN_ELSEWHERE = {
    "AdaptiveConformal",
    "DataSplits",
    "DistributionPredictive",
    "Evaluation",
    "FittedPosterior",
    "LossGrid",
    "LossSlice",
    "Reference",
    "TuningResult",
}
"""Classes whose repr needs consistent contents; instances are in test_display.py, tests/calibration,
tests/experiments, tests/likelihoods and tests/reference."""


def list_public_classes():
    """Classes of `__all__` of every package, by name, without errors, enumerations and abstract classes."""
    names = [module.name for module in pkgutil.iter_modules(flatbayes.__path__) if module.ispkg]
    exports = {}
    for package in [flatbayes, *(importlib.import_module(f"flatbayes.{name}") for name in names)]:
        exports |= {
            f"{kind.__module__}.{kind.__qualname__}": kind
            for kind in (getattr(package, name) for name in getattr(package, "__all__", ()))
            if isinstance(kind, type) and not issubclass(kind, (BaseException, enum.Enum)) and not is_abstract(kind)
        }
    return exports


def is_abstract(kind):
    return inspect.isabstract(kind) or getattr(kind, "_is_protocol", False)


CLASSES = list_public_classes()


def make_value(annotation, depth=0):
    """A large value of a type: long collections, big tensors, deep networks."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return make_value(next((a for a in arguments if a is not type(None)), str), depth)
    if origin is typing.Literal:
        return arguments[0]
    if origin is Callable or annotation is Callable:
        return make_network
    kind = origin or annotation
    if not isinstance(kind, type):
        return "text"
    if kind in EXAMPLES:
        return EXAMPLES[kind]
    simple = {bool: False, int: 3, float: 0.123456789, str: "text", Path: Path("folder"), type: nn.Linear}
    if kind in simple:
        return simple[kind]
    if issubclass(kind, np.ndarray):
        return np.zeros((NUM_ENTRIES, NUM_ENTRIES))
    if issubclass(kind, nn.Module):
        return make_network()
    if issubclass(kind, torch.optim.Optimizer):
        return torch.optim.SGD(make_network().parameters(), lr=0.1)
    if dataclasses.is_dataclass(kind) and not is_abstract(kind):
        return make_instance(kind, depth + 1)
    count = 2 if depth else NUM_OBJECTS if any(map(dataclasses.is_dataclass, arguments)) else NUM_ENTRIES
    if hasattr(kind, "items"):
        return {f"entry_{k}": make_value(arguments[1], depth + 1) if arguments else k for k in range(count)}
    if hasattr(kind, "__getitem__") and not issubclass(kind, torch.Tensor):
        return tuple(make_value(arguments[0], depth + 1) if arguments else 0.123456 for _ in range(count))
    return torch.zeros(NUM_ENTRIES, NUM_ENTRIES)


def make_network():
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))


def make_instance(kind, depth=0):
    """An instance with large values in every field, without the checks of its constructor."""
    instance = object.__new__(kind)
    hints = typing.get_type_hints(kind, include_extras=False)
    for field in dataclasses.fields(kind):
        object.__setattr__(instance, field.name, make_value(hints[field.name], depth))
    return instance


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, kind in CLASSES.items()
        if kind.__name__ not in SHOWN_ELSEWHERE and not issubclass(kind, nn.Module)
    ],
)
def test_reprs_are_short(name):
    kind = CLASSES[name]
    if dataclasses.is_dataclass(kind):
        text = repr(make_instance(kind))
    else:
        assert "__repr__" not in vars(kind) or issubclass(kind, tuple), "add an instance to this test"
        return
    assert len(textwrap.wrap(text, COLUMNS)) < MAX_LINES, text[:300]
    assert "\n" not in text
    assert kind.__name__ in text
