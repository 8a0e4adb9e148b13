"""Checks of data splits: finite inputs, labels in range, the same inputs in all splits, classes that are trained.

Values of images are from 0 to 255 as they are stored, or scaled to about 0 to 1. A network that was trained on the
one predicts nonsense from the other, without an error.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatbayes.core.input_trees import list_tensors
from flatbayes.core.names import format_names
from flatbayes.data.checks import (
    DataWarning,
    check_finite,
    check_label_range,
    check_label_rows,
    check_position_labels,
)
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.splits import DataSplits, Split

MAX_LISTED_CLASSES = 3
"""Largest number of classes in a warning."""
MAX_SCALED = 10.0
"""Largest absolute value of scaled images: those that are standardized exceed 1, and no value of 255 is below it."""
MAX_SCALED_OF_STORED = 3.0
"""The same where images as they are stored are expected, of which dark ones may be given as floating numbers."""


def check_split_values(data: DataSplits, names: Sequence[str] = ("train", "val", "test")) -> None:
    """Check that values of splits made by hand are finite, and labels in range; the sources of data check theirs."""
    for name in names:
        split: Split = getattr(data, name)
        if not isinstance(split.inputs, LazyImages):
            check_finite_inputs(split, f"{name} examples", data.feature_names)
        if data.is_multi_label:
            check_label_rows({name: split.targets}, data.target_names)
        elif data.is_dense:
            check_position_labels({name: split.targets}, data.class_names)
        elif not data.is_regression:
            check_label_range(split.targets, data.num_classes, name)
        elif len(split):
            check_finite(split.targets.reshape(len(split), -1), f"targets of the {name} examples", data.target_names)


def check_finite_inputs(split: Split, description: str, feature_names: Sequence[str] = ()) -> None:
    """Check that inputs in memory hold no NaN and no infinity."""
    for place, tensor in list_tensors(split.inputs).items():
        described = f"{place} of the {description}" if split.has_input_tree else description
        check_finite(tensor, described, feature_names if tensor.ndim == 2 and not split.has_input_tree else ())


def check_same_structure(split: Split, unsplit: Split, name: str) -> None:
    """Check that a split has the inputs that the other examples have.

    Several tensors have the same names; their shapes may differ, as those of texts that are padded to other lengths.

    Raises:
        ValueError: It has others, or images whose values have another range.
    """
    places, expected = list(list_tensors(split.inputs)), list(list_tensors(unsplit.inputs))
    if sorted(places) != sorted(expected):
        raise ValueError(
            f"The {name} examples have {', '.join(places)}, and the others {', '.join(expected)}. Give all splits "
            "the same inputs."
        )
    if not split.has_input_tree and split.inputs.shape[1:] != unsplit.inputs.shape[1:]:
        raise ValueError(
            f"The {name} examples have the shape {tuple(split.inputs.shape[1:])}, and the others "
            f"{tuple(unsplit.inputs.shape[1:])}. Give all splits the same shape."
        )
    if not split.has_input_tree:
        check_image_values(split.inputs, describe_image_values(unsplit.inputs), f"The {name} examples")


def warn_of_untrained_classes(data: DataSplits) -> None:
    """Warn of classes that validation or test examples have, and no training example; and of constant labels."""
    if data.is_multi_label:
        warn_of_constant_labels(data.train.targets, data.target_names)
    if not data.class_names or data.is_dense:
        return
    trained = set(data.train.targets.unique().tolist())
    places = {
        name: sorted(set(split.targets.unique().tolist()) - trained)
        for name, split in {"validation": data.val, "test": data.test}.items()
    }
    classes = sorted({label for labels in places.values() for label in labels})
    if classes:
        listed = ", ".join(repr(data.class_names[label]) for label in classes[:MAX_LISTED_CLASSES])
        more = f" and {len(classes) - MAX_LISTED_CLASSES} more" if len(classes) > MAX_LISTED_CLASSES else ""
        verb = "has" if len(classes) == 1 else "have"
        owners = " and ".join(name for name, labels in places.items() if labels)
        warnings.warn(
            f"{len(classes)} of the {data.num_classes} classes {verb} no training example, but some among the "
            f"{owners} examples, which are predicted wrongly: {listed}{more}. If a label is written in several ways, "
            "write it alike; else give training examples, or leave these classes out.",
            category=DataWarning,
            stacklevel=6,
        )


def warn_of_constant_labels(targets: Tensor, names: Sequence[str]) -> None:
    """Warn of labels, of several, that have the same value in all training examples, if any label is known."""
    has_zero, has_one = (targets == 0).any(0).tolist(), (targets == 1).any(0).tolist()
    constant = [name for name, zero, one in zip(names, has_zero, has_one, strict=True) if not (zero and one)]
    if constant and any(has_zero + has_one):
        verb = "has" if len(constant) == 1 else "have"
        warnings.warn(
            f"{len(constant)} of the {len(names)} labels {verb} at most one of the values 0 and 1 in the training "
            f"examples, so that nothing can be learned: {format_names(constant, MAX_LISTED_CLASSES)}. Give examples "
            "of both values, or leave such labels out.",
            category=DataWarning,
            stacklevel=7,
        )


def describe_image_values(inputs: Any) -> str | None:
    """`stored` for images of uint8, `scaled` for floating ones of small values; None for other inputs.

    Examples:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> describe_image_values(images), describe_image_values((255 * images).to(torch.uint8))
        ('scaled', 'stored')
    """
    if isinstance(inputs, LazyImages):
        return "stored"
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.numel():
        return None
    if inputs.dtype == torch.uint8:
        return "stored"
    return "scaled" if inputs.is_floating_point() and float(inputs.abs().max()) <= MAX_SCALED else None


def check_image_values(inputs: Any, expected: object, description: str) -> None:
    """Refuse images whose values have another range than those of the training.

    `expected` is what `describe_image_values` says of the training images; anything else if it is unknown.

    Raises:
        ValueError: They are stored images and the others scaled, or the other way round.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.numel():
        return
    if expected == "scaled" and inputs.dtype == torch.uint8 and int(inputs.max()) > MAX_SCALED:
        raise ValueError(
            f"{description} are uint8 images with values up to {int(inputs.max())}, and those of the training are "
            "floating-point ones with small values: convert and scale them alike, such as images.float() / 255."
        )
    if expected == "stored" and inputs.is_floating_point():
        largest = float(inputs.abs().max())
        if largest <= MAX_SCALED_OF_STORED and bool((inputs != inputs.round()).any()):
            raise ValueError(
                f"{description} are floating-point images with values up to {largest:.3g}, and those of the training "
                "are uint8 images with values up to 255: give them as they are stored, or train on scaled ones."
            )
