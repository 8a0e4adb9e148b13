"""Data frames: their columns are matched by name, in training, validation and prediction."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flatbayes.data.feature_names import split_feature


def is_data_frame(values: object) -> bool:
    """Whether these are columns with names."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def list_columns(values: Any, description: str) -> tuple[str, ...]:
    """Names of the columns of a data frame; empty for other values.

    Args:
        values: A data frame, or anything else.
        description: What the values are, for the message.

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

    Args:
        frame: The data frame.
        names: Names of columns.
        description: What the frame is, for the message.

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

    Args:
        values: A data frame, or anything else.
        names: Names of the columns in training, if they are known.
        description: What the frame is, for the message.
        is_numbered: Whether the names may be those that arrays get, which any data frame of as many columns fits.

    Raises:
        ValueError: Columns of the training are missing.
    """
    known = _to_texts(names)
    if not is_data_frame(values) or not known:
        return values
    if is_numbered and set(known) != {str(column) for column in values.columns}:
        return values
    return select_columns(values, known, description)


def convert_data_frame(inputs: Any, feature_names: object = ()) -> Any:
    """A data frame as an array with the features of the training, in their order; other inputs are unchanged.

    Args:
        inputs: Inputs of a prediction.
        feature_names: Names of the features in training, if they are known.

    Raises:
        ValueError: Columns of the training are missing.
    """
    if not is_data_frame(inputs):
        return inputs
    names = _to_texts(feature_names)
    is_numbered = names == [str(k) for k in range(len(names))]  # or trained on an array
    columns = {str(column) for column in inputs.columns}
    sources = [split_feature(name, columns) for name in names]
    if all(category is None for _, category in sources):
        return frame_to_array(order_columns(inputs, names, is_numbered=is_numbered))
    selected = select_columns(inputs, [*dict.fromkeys(name for name, _ in sources)])
    columns_by_name = dict(zip(map(str, selected.columns), selected.columns, strict=True))
    return np.stack([extract_frame_feature(selected[columns_by_name[name]], value) for name, value in sources], 1)


def convert_target_frame(targets: Any, target_names: object = ()) -> Any:
    """Several targets as a data frame in the order of the training; other targets are unchanged.

    Args:
        targets: Targets of an evaluation.
        target_names: Names of the targets in training, if they are known.

    Raises:
        ValueError: Targets of the training are missing.
    """
    names = _to_texts(target_names)
    if len(names) < 2:
        return targets
    stem = names[0].removesuffix("0")
    is_numbered = stem.endswith("_") and names == [f"{stem}{k}" for k in range(len(names))]  # or from an array
    return order_columns(targets, names, is_numbered=is_numbered)


def _to_texts(names: object) -> list[str]:
    """Names from the metadata of a training; empty where they are not known."""
    return list(map(str, names)) if isinstance(names, list | tuple) else []


def extract_frame_feature(column: Any, category: str | None) -> np.ndarray[Any, Any]:
    """A feature from a column of a data frame: its numbers, or 1 in a category and else 0; float64, [rows].

    Args:
        column: The column.
        category: The category; None for numbers, empty for missing values.
    """
    values = np.asarray(column.to_numpy(), dtype=object)
    is_missing = np.array([value is None or value != value or str(value) == "<NA>" for value in values], dtype=bool)
    if category is None:
        return np.where(is_missing, np.nan, values).astype(np.float64)
    texts = np.where(is_missing, "", values).astype(str)
    return np.asarray(texts == category, dtype=np.float64)


def frame_to_array(frame: Any) -> np.ndarray[Any, Any]:
    """A copy of a data frame as an array; columns of several types of numbers, or of booleans, become float64."""
    array = np.array(frame.to_numpy(), copy=True)
    if array.dtype != object:
        return array
    columns = [np.asarray(frame[name].to_numpy(), dtype=object) for name in frame.columns]
    missing = [
        np.array([value is None or str(value) == "<NA>" for value in column], dtype=bool) for column in columns
    ]
    pairs = zip(columns, missing, strict=True)
    return np.stack([np.where(is_missing, np.nan, column).astype(np.float64) for column, is_missing in pairs], 1)
