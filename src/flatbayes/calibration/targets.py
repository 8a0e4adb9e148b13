"""Validation of the targets and groups of calibration examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive, Predictive


def to_names(groups: Any) -> list[str]:
    """Names of groups or classes as text.

    Args:
        groups: A vector of numbers or names: tensor, array, series or list.
    """
    values: Sequence[Any] = groups.tolist() if isinstance(groups, Tensor) else np.asarray(groups).tolist()
    return [str(int(value) if isinstance(value, float) and value.is_integer() else value) for value in values]


def check_length(names: Sequence[str], predictive: Predictive) -> None:
    """Check that there is one group for each prediction.

    Args:
        names: Name of each group.
        predictive: The predictions.

    Raises:
        ValueError: The numbers differ.
    """
    if len(names) != len(predictive.mean):
        raise ValueError(
            f"There are {len(predictive.mean)} predictions and {len(names)} groups. Give one group for each example, "
            "in the same order."
        )


def check_targets(predictive: Predictive, targets: Tensor) -> Tensor:
    """Targets of the shape of the predictions.

    Args:
        predictive: The predictions.
        targets: Class indices, or numbers.

    Raises:
        TypeError: The predictions are neither of classes nor of numbers.
        ValueError: There are no examples, the shapes do not match, or a target is not valid.
    """
    if not isinstance(predictive, CategoricalPredictive | GaussianPredictive):
        raise TypeError(f"Predictions of classes or numbers can be calibrated, got a {type(predictive).__name__}.")
    shape = predictive.mean.shape[:1] if isinstance(predictive, CategoricalPredictive) else predictive.mean.shape
    targets = torch.as_tensor(targets)
    if not len(predictive.mean) or targets.shape not in (shape, (*shape, 1)):
        raise ValueError(
            f"Expected one target for each of at least 1 prediction, got predictions of the shape "
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
    elif not bool(targets.isfinite().all()):
        raise ValueError(f"{int((~targets.isfinite()).sum())} targets are missing or not finite. Leave them out.")
    return targets
