"""Validation of the targets and groups of calibration examples."""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count, format_names
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DenseCategoricalPredictive,
    NumberPredictive,
    Predictive,
)

MIN_EXAMPLES = 10
"""Number of validation examples below which chance decides more about a fitted number than the posterior does."""

END_TOLERANCE = 1e-3
"""Relative distance to the end of its range at which a fitted number counts as at this end."""
NO_POSITION_REGIONS = (
    "There are no sets with a guarantee for a class at each position, whose positions are no independent examples. "
    "calibrate(fitted, data) calibrates their probabilities, and predictive.select_labelled(targets) gives the "
    "positions as examples of a classification."
)


class CalibrationWarning(UserWarning):
    """There are too few validation examples for what is fitted to them, or it is at an end of its range.

    Examples:
        >>> import warnings
        >>> from flatbayes.calibration import CalibrationWarning
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", CalibrationWarning)
        ...     calibrated = calibrate(fitted, inputs[:5], labels[:5], num_draws=2)
        >>> str(caught[0].message)[:56]
        "5 examples are too few for the calibration map 'temperat"
    """


NO_DISTRIBUTION_MAP = (
    "There is no calibration map for the predictions of a DistributionLikelihood. conformalize(fitted, validation) "
    "gives intervals with a guarantee; or choose a family with a free variance, such as NegativeBinomial in place of "
    "Poisson."
)


def warn_if_few(num_examples: int, num_required: int, purpose: str, consequence: str) -> None:
    """Warn of too few validation examples; `purpose` is a part of a sentence, `consequence` one without its end."""
    if num_examples < num_required:
        warnings.warn(
            f"{format_count(num_examples, 'example is', 'examples are')} too few for {purpose}, which needs at least "
            f"{num_required}. {consequence}.",
            CalibrationWarning,
            stacklevel=3,
        )


def count_rare(labels: Tensor) -> int | None:
    """Number of examples outside of the most frequent class, where that is rare; else None.

    Rare is fewer than 10 and fewer than a fifth of all: what is fitted to the probability of the other classes then
    depends on these few, however many examples there are.
    """
    num_other = len(labels) - int(torch.bincount(labels).max()) if len(labels) else 0
    return num_other if num_other < MIN_EXAMPLES and 5 * num_other < len(labels) else None


def warn_if_rare(labels: Tensor, purpose: str) -> None:
    """Warn of so few validation examples outside of the most frequent class that chance decides."""
    num_other = count_rare(labels)
    if num_other is not None and len(labels) >= MIN_EXAMPLES:
        warnings.warn(
            f"{num_other} of the {len(labels)} examples {'is' if num_other == 1 else 'are'} not of the most frequent "
            f"class, too few for {purpose}: it may be worse than none. Give examples with at least {MIN_EXAMPLES} of "
            "the rare classes, in their natural proportion.",
            CalibrationWarning,
            stacklevel=3,
        )


def warn_if_absent(labels: Tensor, num_classes: int, method: str) -> None:
    """Warn of classes without an example, for which a map with parameters of each class is fitted.

    With very few examples, `warn_if_few` warns instead.
    """
    absent = (torch.bincount(labels, minlength=num_classes) == 0).nonzero()[:, 0].tolist()
    if absent and len(labels) >= MIN_EXAMPLES:
        warnings.warn(
            f"{len(absent)} of the {num_classes} classes {'has' if len(absent) == 1 else 'have'} no validation "
            f"example, by number (from 0) {format_names(list(map(str, absent)))}: the calibration map {method!r}, "
            "which has parameters for each class, learns that they do not occur, and may predict them wrongly. Give "
            "examples of all classes, or use 'temperature'.",
            CalibrationWarning,
            stacklevel=3,
        )


def warn_if_at_end(value: float, limits: tuple[float, float], name: str, num_examples: int) -> None:
    """Warn of a fitted number at an end of its range, unless there are so few examples that `warn_if_few` warns."""
    if num_examples >= MIN_EXAMPLES and min(abs(math.log(value / limit)) for limit in limits) < END_TOLERANCE:
        warnings.warn(
            f"The {name} is {value:.3g}, an end of its range: the NLL of the validation examples has no minimum "
            "within it. Check that their targets belong to their inputs.",
            CalibrationWarning,
            stacklevel=3,
        )


def to_names(groups: Any) -> list[str]:
    """Names of groups or classes as text."""
    values: Sequence[Any] = groups.tolist() if isinstance(groups, Tensor) else np.asarray(groups).tolist()
    return [str(int(value) if isinstance(value, float) and value.is_integer() else value) for value in values]


def match_names(groups: Any, known: Collection[str]) -> list[str]:
    """Names of groups as text; `1.0`, as in a column with missing values, stands for a known group `1`.

    >>> match_names(["1.0", "a"], ["1", "a"]), match_names(["1.0"], ["1.0"])
    (['1', 'a'], ['1.0'])
    """
    names = to_names(groups)
    whole = {name: name.removesuffix(".0") for name in set(names) - set(known)}
    return [whole[name] if whole.get(name) in known else name for name in names]


def warn_of_unseen_groups(names: Iterable[str], known: Iterable[str]) -> None:
    """Warn of groups without calibration examples, such as known groups in another spelling."""
    unseen = sorted(set(names) - set(known))
    if unseen:
        warnings.warn(
            f"There are no calibration examples of {format_names(unseen)}: regions of such examples contain "
            f"everything. The groups of the calibration are {format_names(known)}, and have to be written alike.",
            CalibrationWarning,
            stacklevel=4,
        )


def check_length(names: Sequence[str], predictive: Predictive) -> None:
    """Check that there is one group for each prediction."""
    if len(names) != len(predictive.mean):
        raise ValueError(
            f"There are {format_count(len(predictive.mean), 'prediction')} and {format_count(len(names), 'group')}. "
            "Give one group for each example, in the same order."
        )


def check_targets(predictive: Predictive, targets: Tensor) -> Tensor:
    """Targets of the shape of the predictions.

    Labels that are not known are NaN or `IGNORE_INDEX`.

    Returns:
        Class indices, numbers, or labels that are 0, 1 or `IGNORE_INDEX`.

    Raises:
        TypeError: The predictions are of a user's class.
        ValueError: There are no examples, the shapes do not match, or a target is not valid.
    """
    if isinstance(predictive, DenseCategoricalPredictive):
        raise TypeError(NO_POSITION_REGIONS)
    if not isinstance(predictive, BernoulliPredictive | CategoricalPredictive | NumberPredictive):
        raise TypeError(
            f"Predictions of classes, labels or numbers can be calibrated, got a {type(predictive).__name__}."
        )
    shape = predictive.mean.shape[:1] if isinstance(predictive, CategoricalPredictive) else predictive.mean.shape
    targets = torch.as_tensor(targets)
    if not len(predictive.mean) or targets.shape not in (shape, (*shape, 1)):
        is_several = isinstance(predictive, BernoulliPredictive)
        expected = f"one row of {shape[1]} labels" if is_several else "one target"
        raise ValueError(
            f"Expected {expected} for each of at least 1 prediction, got predictions of the shape "
            f"{tuple(predictive.mean.shape)} and targets of the shape {tuple(targets.shape)}."
        )
    targets = targets.reshape(shape)
    if isinstance(predictive, CategoricalPredictive):
        num_classes = predictive.mean.shape[1]
        if targets.is_floating_point() and bool((targets == targets.round()).all()):  # the loss takes them too
            targets = targets.long()
        if targets.is_floating_point() or bool(((targets < 0) | (targets >= num_classes)).any()):
            raise ValueError(
                f"Targets must be indices of the {num_classes} classes, got {targets.dtype} from {targets.min()} to "
                f"{targets.max()}. Leave unlabelled examples out."
            )
    elif isinstance(predictive, BernoulliPredictive):
        return _check_labels(targets)
    elif not bool(targets.isfinite().all()):
        raise ValueError(
            f"{format_count(int((~targets.isfinite()).sum()), 'target is', 'targets are')} missing or not finite. "
            "Leave such examples out."
        )
    return targets


def _check_labels(targets: Tensor) -> Tensor:
    """Several labels of each example as 0, 1 or `IGNORE_INDEX`."""
    targets = targets.nan_to_num(IGNORE_INDEX) if targets.is_floating_point() else targets.long()
    is_wrong = (targets != 0) & (targets != 1) & (targets != IGNORE_INDEX)
    if is_wrong.any():
        row, label = is_wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Labels must be 0 or 1, and NaN or {IGNORE_INDEX} where they are not known; got "
            f"{float(targets[row, label]):g} for label {label} of example {row} (counted from 0)."
        )
    if not bool((targets != IGNORE_INDEX).any()):
        raise ValueError("No label is 0 or 1: there is nothing to compare predictions with.")
    return targets.long()
