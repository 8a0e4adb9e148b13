"""Columns of tables and data frames by name, and the features that are computed from them.

Columns of data frames are matched by name, in training, validation and prediction. The feature `age` is the number in
the column `age`, `city=Paris` is 1 where the column `city` holds Paris and else 0, and `age=` is 1 where the age is
missing. A missing number becomes the mean of the training rows. It is refused in a column without such an indicator,
in which the training data lack no number.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


def is_data_frame(values: object) -> bool:
    """Whether these are columns with names."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def list_columns(values: Any, description: str) -> tuple[str, ...]:
    """Names of the columns of a data frame; empty for other values.

    Raises:
        ValueError: Several columns have the same name.
    """
    names = tuple(map(str, values.columns)) if is_data_frame(values) else ()
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        raise ValueError(
            f"The {description} has several columns of the same name: {duplicates}. Rename or remove them."
        )
    return names


def select_columns(frame: Any, names: Sequence[str], description: str = "data frame") -> Any:
    """The columns of a data frame with these names, in their order.

    Raises:
        ValueError: Columns are missing, or several have the same name.
    """
    columns = {str(column): column for column in frame.columns}
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"The network was trained on columns that the {description} lacks: {', '.join(missing)}. It has "
            f"{', '.join(columns)}."
        )
    selected = frame[[columns[name] for name in names]]
    list_columns(selected, description)
    return selected


def order_columns(values: Any, names: object, description: str = "data frame", *, is_numbered: bool = False) -> Any:
    """A data frame with the columns of the training, in their order; other values are unchanged.

    With `is_numbered` the names may be those that arrays get, which any data frame of as many columns fits.

    Raises:
        ValueError: Columns of the training are missing.
    """
    texts = to_texts(names)
    if not is_data_frame(values) or not texts:
        return values
    if is_numbered and set(texts) != {str(column) for column in values.columns}:
        return values
    return select_columns(values, texts, description)


def convert_target_frame(targets: Any, target_names: object = ()) -> Any:
    """Several targets as a data frame in the order of the training; other targets are unchanged.

    Raises:
        ValueError: Targets of the training are missing.
    """
    names = to_texts(target_names)
    if len(names) < 2:
        return targets
    stem = names[0].removesuffix("0")
    is_numbered = stem.endswith("_") and names == [f"{stem}{k}" for k in range(len(names))]  # or from an array
    return order_columns(targets, names, is_numbered=is_numbered)


def to_texts(names: object) -> list[str]:
    """Names from the metadata of a training; empty where they are not known."""
    return list(map(str, names)) if isinstance(names, list | tuple) else []


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
