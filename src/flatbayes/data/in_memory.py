"""Data sources of what a program holds in memory: arrays, tensors, data frames, and given splits."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import (
    MARKS_OF_MISSING_LABELS,
    check_missing_labels,
    holds_fractions,
    holds_numbers,
    to_floats,
    to_plain_array,
)
from flatbayes.core.display import format_fields
from flatbayes.core.input_trees import count_examples, make_inputs
from flatbayes.data.arrays import NamedArrays, make_raw_splits
from flatbayes.data.checks import DataWarning, TaskType, make_class_names
from flatbayes.data.column_names import is_data_frame, list_columns, order_columns
from flatbayes.data.frame_features import frame_to_array, list_other_columns
from flatbayes.data.pairs import check_pair, holds_several_inputs, join_rows
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import DataSplits, InputTree


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays(DataSource):
    """Inputs and targets as NumPy arrays, tensors or data frames.

    Attributes:
        inputs: Features, [n, features], or images, [n, height, width] with or without an axis of 1 to 4 channels
            before or after these two. The columns of a data frame are numbers; their names become feature names. Or
            a dictionary or tuple of tensors, such as those of a tokenizer, with one row per example in each.
        targets: Labels, [n], whole numbers from 0, or texts, whose distinct values in alphabetic order are the
            classes; or regression targets, [n] or [n, targets], floating-point; or several labels of each example,
            [n, labels], each 0 or 1, and NaN or -100 where it is not known; or the class of each position of an
            example, [n, *positions], and -100 where it is not known. The columns of a data frame are the names of
            targets or labels.
        test: Inputs and targets of the test split; None draws `test_size` examples.
        val: Inputs and targets of the validation split; None draws `val_size` examples.
        task: classification, regression, multi_label or dense; None infers it from the targets: integers
            and texts are classes, fractions are regression targets, rows of 0 and 1 are several labels, unless each
            has a single 1, and other integers of several axes are a class for each position.

    Examples:
        >>> x, y = torch.randn(100, 4).numpy(), torch.arange(100).numpy() % 3
        >>> splits = Arrays(x, y, val_size=0.25).load(seed=0)
        >>> len(splits.train), len(splits.val), len(splits.test)
        (60, 20, 20)
    """

    content_fields: ClassVar[tuple[str, ...]] = ("inputs", "targets", "test", "val")

    inputs: Any = field(kw_only=False)
    targets: Any = field(kw_only=False)
    test: tuple[Any, Any] | None = None
    val: tuple[Any, Any] | None = None
    task: TaskType = None

    __repr__ = format_fields

    __eq__ = object.__eq__  # equal if the same object: comparing the content would take long
    __hash__ = object.__hash__

    def read(self) -> RawSplits:
        """Convert the arrays, without splitting them.

        Raises:
            ValueError: Inputs and targets differ in length, or are neither numbers nor texts, or the data frame of
                a split lacks columns.
        """
        pairs = {"unsplit": (self.inputs, self.targets), "test": self.test, "val": self.val}
        names = {"unsplit": "given examples", "test": "test examples", "val": "validation examples"}
        input_columns = list_columns(self.inputs, "data frame of the given examples")
        target_columns = list_columns(self.targets, "data frame of the given targets")
        several = target_columns if len(target_columns) > 1 else ()
        arrays = {
            split: to_array_pair(
                order_columns(pair[0], input_columns, f"data frame of the {names[split]}"),
                order_columns(pair[1], several, f"data frame of targets of the {names[split]}"),
                names[split],
            )
            for split, pair in pairs.items()
            if pair is not None
        }
        targets = [to_floats(array) if self._holds_label_rows(array) else array for _, array in arrays.values()]
        is_text = any(array.dtype.kind in "OUS" for array in targets)
        class_names: tuple[str, ...] = ()
        if is_text:
            descriptions = [f"The targets of the {names[split]}" for split in arrays]
            class_names, targets = encode_texts(dict(zip(descriptions, targets, strict=True)))
        named = {
            split: NamedArrays(
                inputs, array, f"The inputs of the {names[split]}", f"The targets of the {names[split]}"
            )
            for (split, (inputs, _)), array in zip(arrays.items(), targets, strict=True)
        }
        raw = make_raw_splits(
            named,
            "classification" if is_text else self.task,
            str(name) if (name := getattr(self.targets, "name", None)) else None,
            lambda labels: class_names or make_class_names(labels),
        )
        target_names = raw.target_names and (target_columns or raw.target_names)
        feature_names = input_columns or raw.feature_names
        return replace(raw, feature_names=feature_names, target_names=target_names)

    def _holds_label_rows(self, targets: np.ndarray) -> bool:
        """Whether targets are objects, such as those of a frame with missing labels, that can be no classes."""
        return targets.dtype == object and (targets.ndim > 1 or self.task == "multi_label") and holds_numbers(targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedSplits(DataSource):
    """Given splits as a source: every seed gets the same ones.

    Attributes:
        splits: Training, validation and test split.

    Examples:
        >>> source = FixedSplits(data)
        >>> source.load(seed=1) is source.load(seed=0)
        True
    """

    content_fields: ClassVar[tuple[str, ...]] = ("splits",)

    splits: DataSplits = field(kw_only=False)

    def __post_init__(self) -> None:
        changed = [f.name for f in fields(DataSource) if getattr(self, f.name) != f.default]
        if changed:
            raise ValueError(f"The splits are given: leave out {', '.join(changed)}, or give examples to split.")

    __eq__ = object.__eq__  # equal if the same object: comparing the content would take long
    __hash__ = object.__hash__

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


def to_array_pair(inputs: Any, targets: Any, description: str) -> tuple[np.ndarray | InputTree, np.ndarray]:
    """Inputs and targets as arrays of the same length; a column of targets, [n, 1], becomes [n].

    Inputs may also be a dictionary or tuple of tensors.

    Raises:
        ValueError: Their numbers of examples differ, or a data frame has columns that are no numbers.
        TypeError: The inputs are sparse, or the targets are something else.
    """
    check_pair(inputs, targets, description)
    inputs = join_rows(inputs, targets)
    if is_data_frame(inputs):
        names = list_other_columns(inputs)
        if names:
            raise ValueError(
                f"The columns {', '.join(names)} of the {description} are no numbers. Encode them, for example with "
                "a scikit-learn pipeline before FlatBayesClassifier, or read the file with Table, which does."
            )
        inputs = frame_to_array(inputs, f"data frame of the {description}")
    y = _to_array(targets)
    if holds_several_inputs(inputs, len(y) if y.ndim else 0):
        x: Any = make_inputs(inputs, f"inputs of the {description}")
        shape = (count_examples(x),)
    else:
        x = _to_array(inputs)
        x = to_floats(x) if x.dtype == object and holds_numbers(x) else x
        shape = x.shape
    if not (shape and y.ndim) or shape[0] != len(y):
        raise ValueError(
            f"Inputs and targets of the {description} must have the same number of examples, got the shapes "
            f"{shape} and {y.shape}."
        )
    return x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def encode_texts(targets: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names in alphabetic order, and the labels of each array.

    Raises:
        ValueError: A label is missing, or an array has more than one axis.
    """
    for description, labels in targets.items():
        if labels.ndim != 1:
            raise ValueError(
                f"{description} are texts, and labels must have the shape [n], one class for each example; got "
                f"{labels.shape}. Write several labels of each example as 0 and 1."
            )
        check_missing_labels(labels, description)
    names, codes = np.unique(np.concatenate([*targets.values()]).astype(str), return_inverse=True)
    marks = [mark for mark in MARKS_OF_MISSING_LABELS if mark in names]
    if marks:
        warnings.warn(
            f"{marks[0]!r} is a class. If it stands for a missing label, leave those examples out.",
            category=DataWarning,
            stacklevel=4,
        )
    ends = np.cumsum([len(array) for array in targets.values()])[:-1]
    return tuple(names.tolist()), np.split(codes.astype(np.int64), ends)


def _to_array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype in (torch.bfloat16, torch.float16) else values)
    array = to_plain_array(values)
    if array.dtype == object and holds_fractions(array):
        array = to_floats(array)
    return array if array.flags.writeable else array.copy()  # torch shares memory only with arrays that are writeable
