"""Class labels of every dtype and shape as class indices, where that is unambiguous."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import check_missing_labels, holds_fractions, holds_numbers, to_floats, to_plain_array
from flatbayes.core.input_trees import IGNORE_INDEX, MULTI_LABEL_ADVICE, holds_several_labels
from flatbayes.core.names import format_count, shorten

NEW_HEAD_ADVICE = "new_head=True of fit, --new_head, makes a fresh one of the right size"
SUM_TOLERANCE = 1e-3
"""The sum of the class probabilities of an example may differ from 1 by this much."""


def to_class_indices(
    labels: Tensor, num_classes: int, ignore_index: int | None = IGNORE_INDEX, *, check_values: bool = True
) -> Tensor:
    """Labels as int64 class indices, or as class probabilities where they are soft.

    Args:
        labels: Class indices of any integer, boolean or floating dtype, shape (examples,) or (examples, 1); one-hot
            rows; or class probabilities, shape (examples, classes).
        num_classes: Number of classes.
        ignore_index: Label of examples without a label; None allows none.
        check_values: Whether values are checked, which waits for an accelerator.

    Returns:
        Class indices, int64, shape (examples,); or class probabilities, floating, shape (examples, classes).

    Raises:
        ValueError: The labels are neither class indices nor class probabilities.
    """
    if (
        labels.is_complex()
        or labels.ndim not in (1, 2)
        or (labels.ndim == 2 and labels.shape[1] not in (1, num_classes))
    ):
        raise ValueError(
            f"Labels must be one class index for each example, or one row of {num_classes} class probabilities, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}. Try labels.long() of shape (examples,)."
        )
    if not labels.is_floating_point():
        labels = labels.long()
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return _to_indices_or_probs(labels, check_values=check_values)
    labels = labels.reshape(-1)
    if check_values and labels.is_floating_point():
        fractions = (labels != labels.round()) | ~labels.isfinite()
        if fractions.any():
            row = int(fractions.nonzero()[0])
            if not labels[row].isfinite():
                count = int((~labels.isfinite()).sum())
                raise ValueError(
                    f"{format_count(count, 'label is', 'labels are')} missing or not finite, the first "
                    f"({float(labels[row]):g}) for example {row}. Leave out the examples without a label."
                )
            raise ValueError(
                f"Labels must be whole numbers, indices of classes, got {float(labels[row]):g} for example {row}. "
                "For numbers to predict, use a Gaussian likelihood."
            )
    indices = labels.long()
    if check_values:
        check_class_indices(indices, num_classes, ignore_index)
    return indices


def check_class_indices(indices: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Check that class indices are those of classes.

    An `ignore_index` of None allows none.

    Raises:
        ValueError: An index is negative, or too large.
    """
    is_wrong = (indices < 0) | (indices >= num_classes)
    if ignore_index is not None:
        is_wrong &= indices != ignore_index
    if not is_wrong.any():
        return
    low, high, advice = int(indices.min()), int(indices.max()), "Leave unlabelled examples out"
    if ignore_index is not None:
        advice = f"Mark unlabelled examples by {ignore_index}, or set ignore_index of the likelihood to their label"
    more = "" if high < num_classes else f" For more classes, change the last layer ({NEW_HEAD_ADVICE})."
    raise ValueError(
        f"Labels must lie between 0 and {num_classes - 1} for {num_classes} classes, got {low} to {high}, and "
        f"{int(is_wrong.sum())} that are wrong. {advice}, and number the classes from 0.{more}"
    )


def encode_labels(targets: Any, class_names: object) -> Tensor:
    """Targets as a tensor; labels that are names of the classes of the training, texts or numbers, as their indices.

    Tensors hold indices. Numbers are names if all of them are, as with classes that are called 1, 2 and 3.

    Raises:
        ValueError: A text is not the name of a class.
    """
    if isinstance(targets, Tensor):
        return targets
    array = to_plain_array(targets)
    names = list(map(str, class_names)) if isinstance(class_names, list | tuple) else []
    if array.dtype == object and holds_numbers(array) and (not names or holds_fractions(array)):
        array = to_floats(array)
    elif array.dtype == object and names == ["0", "1"] and all(isinstance(label, bool) for label in array.flat):
        array = array.astype(bool)
    if array.dtype.kind not in "OUS":
        return _match_numbers(array, names)
    array = array.astype(str) if array.dtype.kind == "S" else array
    check_missing_labels(array, "The given labels", names)
    if not names and array.size:
        raise ValueError(
            f"The given labels are texts, such as {shorten(str(array.flat[0]))!r}, and the classes of the training "
            "have no names: pass class indices. For a regression pass numbers, targets.astype(float)."
        )
    unknown = sorted({str(label) for label in array.ravel().tolist()} - set(names))
    if unknown:
        raise ValueError(
            f"{', '.join(map(repr, unknown[:3]))} is not the name of a class of the training: "
            f"{', '.join(map(repr, names))}."
        )
    numbers = {name: index for index, name in enumerate(names)}
    return torch.tensor([numbers[str(label)] for label in array.ravel().tolist()]).reshape(array.shape)


def _match_numbers(array: Any, names: list[str]) -> Tensor:
    """Numbers that are names of classes as indices; other numbers as they are."""
    try:
        indices = {float(name): index for index, name in enumerate(names)}
    except ValueError:
        indices = {}
    labels = array.ravel().tolist() if array.dtype.kind in "iuf" and array.size in array.shape else []
    if not labels or list(indices) == list(range(len(indices))) or not {*labels} <= {*indices, IGNORE_INDEX}:
        return to_tensor(array)
    return torch.tensor([indices.get(label, IGNORE_INDEX) for label in labels]).reshape(array.shape)


def to_tensor(values: Any) -> Tensor:
    """Numbers as a tensor, with a copy of an array, which may be read-only.

    Raises:
        ValueError: They are no numbers.
    """
    if isinstance(values, Tensor):
        return values
    array = np.array(to_plain_array(values))
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Expected numbers, got values of the type {array.dtype}, such as {shorten(str(array.ravel()[0]))!r}. "
            "Convert them."
            if array.size
            else f"Expected numbers, got an empty array of the type {array.dtype}."
        )
    return torch.from_numpy(array)


def _to_indices_or_probs(rows: Tensor, *, check_values: bool) -> Tensor:
    if not check_values:
        return rows if rows.is_floating_point() else rows.argmax(1)
    sums = rows.sum(1)
    if bool((((rows == 0) | (rows == 1)).all(1) & (sums == 1)).all()):
        return rows.argmax(1)
    is_wrong = ~((rows >= 0).all(1) & ((sums - 1).abs() <= SUM_TOLERANCE))  # NaN is wrong
    if is_wrong.any() or not rows.is_floating_point():
        row = int((is_wrong if is_wrong.any() else sums == 1).nonzero()[0])
        raise ValueError(
            f"Labels with {format_count(rows.shape[1], 'column')} must be one-hot, or class probabilities of at "
            f"least 0 with sum 1; got {[round(value, 4) for value in rows[row].tolist()][:8]} for example {row}. "
            f"Pass the class indices, shape (examples,).{MULTI_LABEL_ADVICE if holds_several_labels(rows) else ''}"
        )
    return rows
