"""Names of features, which say how a feature is computed from the columns of a table.

`age` is the number in the column `age`, `city=Paris` is 1 where the column `city` holds Paris and else 0, and `age=`
is 1 where the age is missing. A missing number becomes the mean of the training rows. It is refused in a column
without such an indicator, in which the training data lack no number.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def split_feature(feature: str, column_names: Collection[str]) -> tuple[str, str | None]:
    """The column of a feature, and its category: None for a number, empty for a missing value."""
    if feature in column_names or "=" not in feature:
        return feature, None
    matches = [name for name in column_names if feature.startswith(f"{name}=")]
    column = max(matches, key=len, default=feature.partition("=")[0])
    return column, feature[len(column) + 1 :]


def find_optional_features(feature_names: Sequence[str]) -> list[int]:
    """Positions of the features that may be missing: those with an indicator."""
    names = set(feature_names)
    return [index for index, name in enumerate(feature_names) if f"{name}=" in names]


def fill_missing(inputs: Tensor, feature_names: Sequence[str], means: Tensor) -> Tensor:
    """Replace missing numbers, NaN, of features, [n, features], by means, [features]."""
    optional = find_optional_features(feature_names)
    if not optional or not inputs.isnan().any():
        return inputs
    filled, means = inputs.clone(), means.to(inputs)
    filled[:, optional] = torch.where(filled[:, optional].isnan(), means[optional], filled[:, optional])
    return filled
