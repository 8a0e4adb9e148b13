"""Data sources of what a program holds in memory: arrays, tensors, data frames, and given splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.checks import TaskType, make_class_names
from flatbayes.data.npz import (
    is_regression_array,
    make_feature_names,
    make_target_names,
    to_inputs,
    to_labels,
    to_regression_targets,
)
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import DataSplits, Split


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays(DataSource):
    """Inputs and targets as NumPy arrays, tensors or data frames.

    Attributes:
        inputs: Features, [n, features], or images, [n, height, width] with or without an axis of 1 to 4 channels
            before or after these two. The columns of a data frame are numbers; their names become feature names.
        targets: Labels, [n], whole numbers from 0, or texts, whose distinct values in alphabetic order are the
            classes; or regression targets, [n] or [n, targets], floating-point.
        test: Inputs and targets of the test split; None draws `test_size` examples.
        val: Inputs and targets of the validation split; None draws `val_size` examples.
        task: classification or regression; None infers it from the targets: integers and texts are classes, fractions
            are regression targets.
    """

    content_fields: ClassVar[tuple[str, ...]] = ("inputs", "targets", "test", "val")

    inputs: Any = field(kw_only=False)
    targets: Any = field(kw_only=False)
    test: tuple[Any, Any] | None = None
    val: tuple[Any, Any] | None = None
    task: TaskType = None

    def __eq__(self, other: object) -> bool:
        """Two sources are equal if they are the same object; comparing their content would take long."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def read(self) -> RawSplits:
        """Convert the arrays, without splitting them.

        Raises:
            ValueError: Inputs and targets differ in length, or are neither numbers nor texts.
        """
        pairs = {"given": (self.inputs, self.targets), "test": self.test, "validation": self.val}
        arrays = {name: to_array_pair(*pair, f"{name} examples") for name, pair in pairs.items() if pair is not None}
        targets = [array for _, array in arrays.values()]
        is_text = any(array.dtype.kind in "OUS" for array in targets)
        class_names: tuple[str, ...] = ()
        if is_text:
            class_names, targets = encode_texts(targets)
        is_regression = not is_text and is_regression_array(targets[0], self.task, "The array of targets")
        convert = to_regression_targets if is_regression else to_labels
        splits = {
            name: Split(
                inputs=to_inputs(inputs, f"The inputs of the {name} examples"),
                targets=convert(array, f"The targets of the {name} examples"),
            )
            for (name, (inputs, _)), array in zip(arrays.items(), targets, strict=True)
        }
        unsplit = splits["given"]
        columns = getattr(self.inputs, "columns", None)
        features = make_feature_names(unsplit.input_tensor)
        return RawSplits(
            unsplit=unsplit,
            test=splits.get("test"),
            val=splits.get("validation"),
            class_names=()
            if is_regression
            else class_names or make_class_names([split.targets for split in splits.values()]),
            feature_names=features if columns is None else tuple(map(str, columns)),
            target_names=self._name_targets(unsplit.targets) if is_regression else (),
        )

    def _name_targets(self, targets: Tensor) -> tuple[str, ...]:
        columns = getattr(self.targets, "columns", None)
        if columns is not None:
            return tuple(map(str, columns))
        return make_target_names(str(getattr(self.targets, "name", None) or "target"), targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedSplits(DataSource):
    """Given splits as a source: every seed gets the same ones.

    Attributes:
        splits: Training, validation and test split.
    """

    content_fields: ClassVar[tuple[str, ...]] = ("splits",)

    splits: DataSplits = field(kw_only=False)

    def __post_init__(self) -> None:
        changed = [f.name for f in fields(DataSource) if getattr(self, f.name) != f.default]
        if changed:
            raise ValueError(f"The splits are given: leave out {', '.join(changed)}, or give examples to split.")

    def __eq__(self, other: object) -> bool:
        """Two sources are equal if they are the same object; comparing their content would take long."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def read(self) -> RawSplits:
        """All examples as raw splits."""
        return RawSplits(
            unsplit=self.splits.train,
            val=self.splits.val,
            test=self.splits.test,
            class_names=self.splits.class_names,
            feature_names=self.splits.feature_names,
            target_names=self.splits.target_names,
        )

    def load(self, seed: int) -> DataSplits:
        """The splits, for every seed."""
        return self.splits


def is_array_pair(data: object) -> bool:
    """Whether this is a pair of inputs and targets, each a tensor or what NumPy converts to an array."""
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(entry, Tensor) or hasattr(entry, "__array__") for entry in data)
    )


def to_array_pair(inputs: Any, targets: Any, description: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as arrays of the same length; a column of targets, [n, 1], becomes [n].

    Args:
        inputs: Array, tensor, data frame or nested list.
        targets: Array, tensor, series, data frame or list.
        description: What they are, for messages.

    Raises:
        ValueError: Their numbers of examples differ, or a data frame has columns that are no numbers.
    """
    columns = getattr(inputs, "dtypes", None)
    if columns is not None and hasattr(inputs, "columns"):
        names = [str(name) for name, dtype in columns.items() if getattr(dtype, "kind", "O") not in "biuf"]
        if names:
            raise ValueError(
                f"The columns {', '.join(names)} of the {description} are no numbers. Encode them, for example with "
                "a scikit-learn pipeline before FlatBayesClassifier, or read the file with Table, which does."
            )
    x, y = (_to_array(values) for values in (inputs, targets))
    if not (x.ndim and y.ndim) or len(x) != len(y):
        raise ValueError(
            f"Inputs and targets of the {description} must have the same number of examples, got the shapes "
            f"{x.shape} and {y.shape}."
        )
    return x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def encode_texts(targets: Sequence[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names in alphabetic order, and the labels of each array.

    Args:
        targets: Labels of each split as texts, [n].

    Raises:
        ValueError: A label is missing, or an array has more than one axis.
    """
    if any(array.ndim != 1 for array in targets):
        raise ValueError("Labels that are texts must have the shape [n], one class for each example.")
    flat = np.concatenate(targets)
    missing = sum(value is None or value != value for value in flat.tolist())  # NaN differs from itself
    if missing:
        raise ValueError(f"{missing} of {len(flat)} labels are missing. Leave out these examples.")
    names, codes = np.unique(flat.astype(str), return_inverse=True)
    ends = np.cumsum([len(array) for array in targets])[:-1]
    return tuple(names.tolist()), np.split(codes.astype(np.int64), ends)


def _to_array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype in (torch.bfloat16, torch.float16) else values)
    array = np.asarray(values)
    return array if array.flags.writeable else array.copy()  # torch shares memory only with arrays that are writeable
