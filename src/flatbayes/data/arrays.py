"""Conversion of NumPy arrays to inputs and targets, and to examples that are not split yet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.input_trees import (
    DENSE_ADVICE,
    FLATTEN_ADVICE,
    IGNORE_INDEX,
    MULTI_LABEL_ADVICE,
    TEXT_ADVICE,
    holds_position_labels,
    holds_several_labels,
    holds_texts,
    is_input_tree,
)
from flatbayes.core.names import format_count
from flatbayes.data.checks import Task, TaskType, check_fractions, make_class_names, to_int64
from flatbayes.data.source import RawSplits
from flatbayes.data.splits import InputTree, Split


class NamedArrays(NamedTuple):
    """Inputs and targets of a split, and what they are, for messages.

    Inputs have a shape that `to_inputs` takes, or are a dictionary or tuple of tensors; targets are [n], [n, targets]
    or [n, *positions].
    """

    inputs: np.ndarray | InputTree
    targets: np.ndarray
    inputs_description: str
    targets_description: str


def make_raw_splits(
    arrays: Mapping[str, NamedArrays],
    task: TaskType,
    target_name: str | None = None,
    name_classes: Callable[[Sequence[Tensor]], tuple[str, ...]] = make_class_names,
) -> RawSplits:
    """Convert arrays to examples, without splitting them.

    Args:
        arrays: Arrays of `unsplit`, and of `test` and `val` where they exist.
        task: classification, regression, multi_label or dense; None infers it from the targets of `unsplit`.
        target_name: Name of the regression targets or labels, which are numbered if there are several; None for
            `target` or `label`.
        name_classes: Makes class names from the labels of each split.

    Raises:
        ValueError: An array has another type or shape.
    """
    first = arrays["unsplit"]
    task = infer_array_task(first.targets, task, first.targets_description)
    convert_targets = CONVERTERS[task]
    splits = {
        name: Split(
            inputs=split.inputs if is_input_tree(split.inputs) else to_inputs(split.inputs, split.inputs_description),
            targets=convert_targets(split.targets, split.targets_description),
        )
        for name, split in arrays.items()
    }
    unsplit = splits["unsplit"]
    target_name = target_name or ("label" if task == "multi_label" else "target")
    return RawSplits(
        unsplit=unsplit,
        test=splits.get("test"),
        val=splits.get("val"),
        class_names=name_classes(list_labels(splits.values())) if task in CLASS_TASKS else (),
        target_names=() if task in CLASS_TASKS else make_target_names(target_name, unsplit.targets),
        feature_names=() if unsplit.has_input_tree else make_feature_names(unsplit.input_tensor),
    )


def list_labels(splits: Iterable[Split]) -> list[Tensor]:
    """The known labels of each split, [n]."""
    return [
        split.targets if split.targets.ndim == 1 else split.targets[split.targets != IGNORE_INDEX] for split in splits
    ]


def to_inputs(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to features, [n, features], or images, [n, channels, height, width].

    Images of uint8 keep their type. Features that float32 may round, and images that it rounds by more than a
    thousandth of their standard deviation, are float64 until they are standardized. Other arrays become float32.

    Args:
        array: [n, features], [n, height, width], [n, channels, height, width] or [n, height, width, channels].
        description: What the array is, for messages.

    Raises:
        ValueError: The array has another type or shape.
    """
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        is_column = array.dtype.kind in "biuf" and array.ndim == 1
        advice = (
            " For one feature, give it a second axis: values[:, None], or frame[['column']]." if is_column else ""
        )
        if holds_texts(array):
            advice = f" {TEXT_ADVICE}"
        raise ValueError(
            f"{description} must be numbers of the shape [n, features], [n, height, width], [n, channels, height, "
            f"width] or [n, height, width, channels], got {array.dtype} of the shape {array.shape}.{advice}"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] > 4:
        if array.shape[3] > 4:
            raise ValueError(
                f"{description} has the shape {array.shape}, in which neither the second nor the last axis is one "
                "of 1 to 4 channels. Reshape it to [n, channels, height, width]."
            )
        array = array.transpose(0, 3, 1, 2)
    dtype: type[np.generic] = np.float32
    if array.ndim == 2 or loses_precision(array):
        dtype = choose_float_type(array.dtype)
    if array.ndim == 4 and array.dtype == np.uint8:
        dtype = np.uint8
    with np.errstate(over="ignore"):  # check_finite refuses the infinity that an overflow gives
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def choose_float_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The smaller one of float32 and float64 that holds all numbers of this type (up to 2^53) without rounding."""
    return np.float32 if np.can_cast(dtype, np.float32) else np.float64


def loses_precision(array: np.ndarray) -> bool:
    """Whether float32 rounds the largest number by more than a thousandth of the standard deviation of all."""
    if choose_float_type(array.dtype) is np.float32 or not array.size:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        spread = array.std(dtype=np.float64)
        return bool(spread > 0 and np.spacing(np.abs(array).max().astype(np.float32)) > 1e-3 * spread)


def infer_array_task(targets: np.ndarray, task: TaskType, description: str) -> Task:
    """The task of an array: as `task` says, else multi-label for rows of 0 and 1, and regression for fractions.

    Whole numbers with several axes that are neither such rows nor one-hot ones are classes of positions.

    Raises:
        ValueError: The array is ambiguous.
    """
    if task is not None:
        return task
    if targets.dtype.kind in "biuf" and holds_several_labels(targets):
        return "multi_label"
    if holds_position_labels(targets):
        return "dense"
    if targets.dtype.kind == "f" and targets.ndim > 2:
        return "regression"
    if targets.dtype.kind == "f" and targets.ndim in (1, 2):
        advice = MULTI_LABEL_ADVICE if targets.ndim == 2 and targets.shape[1] > 1 else ""
        missing = np.argwhere(np.isnan(targets))
        if len(missing):
            advice += (
                f" {format_count(len(missing), 'value is', 'values are')} missing, the first in row "
                f"{missing[0][0]} (counted from 0), which makes whole numbers fractions: leave out those examples."
            )
        check_fractions(targets[np.isfinite(targets)], description, advice)
        return "regression"
    return "classification"


def to_regression_targets(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to regression targets, [n] or [n, targets] (float32 or float64).

    Raises:
        ValueError: The array has another type or shape.
    """
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        several_axes = array.dtype.kind in "iuf" and array.ndim > 2
        advice = FLATTEN_ADVICE if several_axes else "Convert it with astype('float32')."
        raise ValueError(
            f"{description} must be numbers of the shape [n] or [n, targets], got {array.dtype} of the shape "
            f"{array.shape}. {advice}"
        )
    return torch.from_numpy(array.astype(choose_float_type(array.dtype)))


def make_target_names(name: str, targets: Tensor) -> tuple[str, ...]:
    """Name regression targets or labels: `name`, or `name_0`, `name_1` ... for several."""
    return (name,) if targets.ndim == 1 else tuple(f"{name}_{column}" for column in range(targets.shape[1]))


def make_feature_names(inputs: Tensor) -> tuple[str, ...]:
    """Name features by their numbers; empty for images."""
    return tuple(str(index) for index in range(inputs.shape[1])) if inputs.ndim == 2 else ()


def to_labels(array: np.ndarray, description: str) -> Tensor:
    """Convert an array of whole numbers of any type, [n] or [n, 1], to labels, [n] (int64).

    Raises:
        ValueError: The array is not of whole numbers, or has another shape.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f" and array.ndim == 1 and holds_whole_numbers(array):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu" or array.ndim != 1:
        raise ValueError(
            f"{description} must be whole numbers (integers) of the shape [n], one class for each example, got "
            f"{array.dtype} of the shape {array.shape}. Convert it, for example with numpy.argmax or "
            f"astype('int64').{MULTI_LABEL_ADVICE if array.ndim == 2 and array.shape[1] > 1 else ''}"
            f"{DENSE_ADVICE if array.ndim > 1 and array.dtype.kind in 'biu' else ''}"
        )
    return torch.from_numpy(to_int64(array, description))


def holds_whole_numbers(array: np.ndarray) -> bool:
    """Whether all floating-point numbers are finite, without fractions, and small enough to be exact."""
    return bool((np.abs(array) <= 2.0**24).all()) and np.array_equal(array, np.round(array))


def to_label_rows(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to several labels of each example, [n, labels] (int64), `IGNORE_INDEX` for NaN.

    Raises:
        ValueError: The array has another type or shape, or fractions.
    """
    array = array[:, None] if array.ndim == 1 else array  # of one label
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.shape[1]:
        raise ValueError(
            f"{description} must be 0 or 1 for each label, of the shape [n, labels], got {array.dtype} of the shape "
            f"{array.shape}."
        )
    labels = np.where(np.isnan(array), IGNORE_INDEX, array) if array.dtype.kind == "f" else array
    is_fraction = labels != np.floor(labels) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
    if is_fraction.any():
        raise ValueError(
            f"{description} must be 0 or 1 for each label, got {labels[is_fraction][0]:g} in row "
            f"{is_fraction.any(1).argmax()} (counted from 0). Probabilities of labels are given by a DataLoader."
        )
    return torch.from_numpy(to_int64(labels, description))


def to_position_labels(array: np.ndarray, description: str) -> Tensor:
    """Convert a class for each position of an example, [n, *positions], to int64.

    Raises:
        ValueError: The array has another type, or a single axis of no whole numbers.
    """
    array = array[:, None] if array.ndim == 1 else array  # of one position
    if array.dtype.kind == "f" and holds_whole_numbers(array):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu" or array.ndim < 2 or 0 in array.shape[1:]:
        raise ValueError(
            f"{description} must be whole numbers (integers) of the shape [n, *positions], one class for each "
            f"position of an example, got {array.dtype} of the shape {array.shape}. Convert it, for example with "
            "astype('int64')."
        )
    return torch.from_numpy(to_int64(array, description))


CLASS_TASKS: tuple[Task, ...] = ("classification", "dense")
"""Tasks whose targets are classes, which have names."""
CONVERTERS: Mapping[Task, Callable[[np.ndarray, str], Tensor]] = {
    "classification": to_labels,
    "regression": to_regression_targets,
    "multi_label": to_label_rows,
    "dense": to_position_labels,
}
"""Conversion of targets by task; the second argument says what they are, for messages."""
