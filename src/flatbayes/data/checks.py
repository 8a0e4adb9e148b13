"""Validation of examples: labels, regression targets, finite inputs."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count
from flatbayes.data.column_names import fill_missing

MIN_EXAMPLES_OF_IDENTIFIERS = 10
"""Fewest examples in which classes that are numbers to predict, or identifiers, are noticed."""
FEW_VALUES = 2**12
"""Up to this number of values each is checked, in fewer operations than their extremes take."""
REGRESSION_ADVICE = (
    "for numbers set the option task of the data to regression (on the command line, --data.task regression), or "
    'pass likelihood=Gaussian to fit, for counts likelihood="Poisson"'
)
MAX_NAMED_CLASSES = 1000
"""Classes up to this number are named whether or not all have an example; more need as many examples."""
EXAMPLES_PER_CHUNK = 4096  # bounds the memory of the check for finite values


class DataWarning(UserWarning):
    """Data are read in a way that users may not expect: something is left out, or looks like a mistake.

    Examples:
        >>> import warnings
        >>> columns = {
        ...     "Unnamed: 0": range(60),
        ...     "age": [*range(30)] * 2,
        ...     "answer": ["yes", "no"] * 30,
        ... }
        >>> with PredictionWriter("task.csv") as writer:
        ...     writer.write({name: np.array(values) for name, values in columns.items()})
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", DataWarning)
        ...     splits = Table(path="task.csv", target="answer").load(seed=0)
        >>> [str(warning.message)[:44] for warning in caught]
        ["Column 'Unnamed: 0' of task.csv is left out:"]
    """


Task = Literal["classification", "regression", "multi_label", "dense"]
"""What is predicted: one class, numbers, several labels that are each 0 or 1, or a class for each position."""
TaskType = Task | None
"""None infers the task from the type of the targets."""


def check_labels(
    splits: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    allow_rare: bool = False,
    allow_missing: bool = False,
) -> None:
    """Check that the labels of splits are 0 to `num_classes - 1`, and that each of at least 2 classes has an example.

    With `allow_missing` classes may have no example, or a single one: their number is known.

    Raises:
        ValueError: A label is out of range, a class has no example, or most classes have a single one.
    """
    num_classes = len(class_names)
    if num_classes < 2:
        raise ValueError(
            f"A classification task needs at least 2 classes, got {num_classes} {list(class_names)}. "
            "Check that the labels are read from the right column or folders."
        )
    has_examples = torch.zeros(num_classes, dtype=torch.bool)
    for name, targets in splits.items():
        check_label_range(targets, num_classes, name)
        has_examples[targets] = True
    if allow_missing:
        return
    if not has_examples.all():
        missing = [class_names[index] for index in (~has_examples).nonzero().flatten().tolist()]
        raise ValueError(
            f"{len(missing)} of the {num_classes} classes {'has' if len(missing) == 1 else 'have'} no example; the "
            f"first is {missing[0]!r}. Leave such classes out, and number the others without gaps, 0 to "
            f"{int(has_examples.sum()) - 1}. A pair or dataset that fit gets may lack classes where their number is "
            f"known: likelihood=Categorical({num_classes}). {REGRESSION_ADVICE[0].upper()}{REGRESSION_ADVICE[1:]}."
        )
    _check_class_sizes(torch.bincount(torch.cat([*splits.values()]), minlength=num_classes), class_names, allow_rare)


def check_label_range(targets: Tensor, num_classes: int, name: str) -> None:
    """Check that the labels of a split are 0 to `num_classes - 1`."""
    invalid_rows = ((targets < 0) | (targets >= num_classes)).nonzero().flatten()
    if len(invalid_rows):
        verb = "is" if len(invalid_rows) == 1 else "are"
        raise ValueError(
            f"{format_count(len(invalid_rows), 'label')} of the {name} examples {verb} out of range: labels go from "
            f"0 to {num_classes - 1}, and the first wrong one is {int(targets[invalid_rows[0]])} in row "
            f"{int(invalid_rows[0])} (counted from 0). Correct the labels, or leave out examples without a label. "
            f"{REGRESSION_ADVICE[0].upper()}{REGRESSION_ADVICE[1:]}."
        )


def _check_class_sizes(counts: Tensor, class_names: Sequence[str], allow_rare: bool) -> None:
    total, num_classes = int(counts.sum()), len(class_names)
    single = (counts == 1).nonzero().flatten().tolist()
    names = ", ".join(repr(class_names[index]) for index in single[:3])
    if total < MIN_EXAMPLES_OF_IDENTIFIERS:
        return
    if 2 * num_classes > total and not allow_rare:
        is_numeric = all(re.fullmatch(r"[+-]?\d+", name) for name in class_names)
        reason = (
            "If these numbers are to be predicted, say task=regression (on the command line --data.task regression), "
            'or for counts likelihood="Poisson" or "NegativeBinomial" (--likelihood poisson)'
            if is_numeric
            else "If they identify the examples, name another column as the target"
        )
        raise ValueError(
            f"The {total} examples have {num_classes} classes, and {len(single)} of these "
            f"{'has' if len(single) == 1 else 'have'} a single example, such as {names}. {reason}; a classification "
            "needs several examples of each class. (task=classification keeps such classes, where a source has this "
            "option.)"
        )
    if single:
        warnings.warn(
            f"{len(single)} of the {num_classes} classes {'has' if len(single) == 1 else 'have'} a single example, "
            f"which only one of the splits can have: {names}{' and others' if len(single) > 3 else ''}.",
            category=DataWarning,
            stacklevel=4,
        )
    similar: dict[str, list[str]] = {}
    for name in class_names:
        similar.setdefault(name.strip().casefold(), []).append(name)
    groups = [group for group in similar.values() if len(group) > 1]
    if groups:
        warnings.warn(
            f"Classes differ only in spaces or in upper and lower case: {', '.join(map(repr, groups[0]))}. If they "
            "are one class, write them alike.",
            category=DataWarning,
            stacklevel=4,
        )


def check_position_labels(splits: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Check that labels, [n, *positions], are classes or `IGNORE_INDEX`, and that there are at least 2 classes."""
    if len(class_names) < 2:
        raise ValueError(
            f"A classification of positions needs at least 2 classes, got {len(class_names)} {list(class_names)}. "
            "Number the classes from 0, and give examples with labels."
        )
    for name, labels in splits.items():
        invalid = ((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= len(class_names))
        if invalid.any():
            first = invalid.nonzero()[0].tolist()
            raise ValueError(
                f"{format_count(int(invalid.sum()), 'label')} of positions of the {name} examples "
                f"{'is' if int(invalid.sum()) == 1 else 'are'} out of range: labels go from 0 to "
                f"{len(class_names) - 1}, and the first wrong one is {int(labels[tuple(first)])} in row {first[0]} "
                f"(counted from 0), position {tuple(first[1:])}. Write {IGNORE_INDEX} for a position without a label."
            )


def to_int64(labels: NDArray[Any], description: str) -> NDArray[np.int64]:
    """Convert labels of any type of whole numbers.

    Raises:
        ValueError: A label of uint64 is too large for int64.
    """
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{description} has the label {labels.max()}, which is beyond int64. Labels number the classes from 0 "
            "without gaps: -1 that was stored as an unsigned integer looks like this. Correct such labels."
        )
    return labels.astype(np.int64)


def make_class_names(targets: Sequence[Tensor]) -> tuple[str, ...]:
    """Name classes by their numbers, from 0 to the highest label.

    Raises:
        ValueError: The highest label is too large for labels without gaps.
    """
    highest = max((int(labels.max()) for labels in targets if len(labels)), default=-1)
    total = sum(len(labels) for labels in targets)
    if highest >= max(total, MAX_NAMED_CLASSES):
        raise ValueError(
            f"The highest label is {highest}, and there are only {format_count(total, 'example')}. Labels number the "
            "classes from 0 without gaps; check that they are read from the right column or array. "
            f"{REGRESSION_ADVICE[0].upper()}{REGRESSION_ADVICE[1:]}."
        )
    return tuple(str(label) for label in range(highest + 1))


def check_finite(inputs: Tensor, description: str, feature_names: Sequence[str] = (), first_row: int = 0) -> None:
    """Check that inputs hold no NaN and no infinity, and no float64 that float32 cannot represent.

    `first_row` is the row number of the first example, for inputs that are checked in chunks.

    Raises:
        ValueError: Some values are not finite; the message locates the first. Features with an indicator of missing
            numbers in `feature_names` may be NaN.
    """
    if not inputs.is_floating_point() or _has_finite_extremes(inputs):
        return
    inputs = fill_missing(inputs, feature_names, torch.zeros(len(feature_names)))
    if _has_finite_extremes(inputs):
        return
    counts = [int((~chunk.float().isfinite()).sum()) for chunk in torch.split(inputs, EXAMPLES_PER_CHUNK)]
    start = EXAMPLES_PER_CHUNK * next(index for index, count in enumerate(counts) if count)
    offset, *position = (~inputs[start : start + EXAMPLES_PER_CHUNK].float().isfinite()).nonzero()[0].tolist()
    row = start + offset
    value = float(inputs[(row, *position)])
    reason = describe_invalid_number(value)
    location = f"pixel {tuple(position)} (channel, row, column)"
    if len(position) == 1:
        location = f"feature {feature_names[position[0]]!r}" if feature_names else f"feature {position[0]}"
    raise ValueError(
        f"The {description} hold {format_count(sum(counts), 'value that is', 'values that are')} {reason}; the first "
        f"is {value} in row {first_row + row} (counted from 0), {location}. Fill them in or leave those examples out."
    )


def _has_finite_extremes(inputs: Tensor) -> bool:
    """Whether all values are finite as float32, from the smallest and the largest one, which are NaN if any value is.

    This reads the values once and makes no copy of them.
    """
    if inputs.numel() == 0:
        return True
    values = inputs.detach().float() if inputs.element_size() == 1 else inputs.detach()  # torch compares no float8
    extremes = values if values.numel() <= FEW_VALUES else torch.stack(torch.aminmax(values))
    return bool(extremes.float().isfinite().all())


def describe_invalid_number(value: float) -> str:
    """Why a number cannot be used: it is not finite, or it is not once it is float32."""
    return "beyond the range of float32 (3.4e38)" if math.isfinite(value) else "missing or not finite"


class AmbiguousTargetsError(ValueError):
    """Targets are whole numbers of a floating-point type, which may be classes or numbers to predict."""


def check_fractions(values: NDArray[np.floating[Any]], description: str, advice: str = "") -> None:
    """Check that floating-point targets are regression targets.

    Raises:
        AmbiguousTargetsError: All values are whole numbers (1.0, 2.0), which may be classes or regression targets.
    """
    if np.array_equal(values, np.round(values)):
        raise AmbiguousTargetsError(
            f"{description}: whole numbers as {values.dtype}, which may be classes or numbers to predict. For "
            "classes write integers, set the option task of the data to classification, or pass "
            f"likelihood=Categorical to fit; {REGRESSION_ADVICE}.{advice}"
        )


def check_targets(splits: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Check that regression targets, [n] or [n, targets], are finite floating-point numbers, not all equal."""
    for split_name, targets in splits.items():
        if not targets.is_floating_point() or targets.shape[1:].numel() != len(names):
            raise ValueError(
                f"The targets of the {split_name} examples must be floating-point numbers, {len(names)} for each "
                f"example {list(names)}, got {targets.dtype} of the shape {tuple(targets.shape)}."
            )
        rows = targets.reshape(len(targets), len(names))
        invalid = (~rows.float().isfinite()).nonzero().tolist()
        if invalid:
            row, column = invalid[0]
            reason = describe_invalid_number(float(rows[row, column]))
            raise ValueError(
                f"The {split_name} examples have {format_count(len(invalid), 'target that is', 'targets that are')} "
                f"{reason}; the first is {float(rows[row, column])} in row {row} (counted from 0), target "
                f"{names[column]!r}. Leave those examples out."
            )
        for column, name in enumerate(names):
            if len(rows) > 1 and bool((rows[:, column] == rows[0, column]).all()):
                raise ValueError(
                    f"Target {name!r} is {float(rows[0, column]):g} in all {len(rows)} {split_name} examples: there "
                    "is nothing to predict. Check that it is read from the right column."
                )


def check_label_rows(splits: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Check that several labels of each example, [n, labels], are 0, 1, or `IGNORE_INDEX` where not known."""
    for split_name, labels in splits.items():
        if labels.ndim != 2 or labels.shape[1] != len(names):
            raise ValueError(
                f"The targets of the {split_name} examples must be {len(names)} labels for each example, got the "
                f"shape {tuple(labels.shape)}."
            )
        invalid = ((labels != 0) & (labels != 1) & (labels != IGNORE_INDEX)).nonzero().tolist()
        if invalid:
            row, column = invalid[0]
            raise ValueError(
                f"The {split_name} examples have {format_count(len(invalid), 'label that is', 'labels that are')} "
                f"neither 0 nor 1; the first is {int(labels[row, column])} in row {row} (counted from 0), label "
                f"{names[column]!r}. Write {IGNORE_INDEX} for a label that is not known."
            )
