"""Data frames: their columns are matched by name, in training, validation and prediction."""

from collections import Counter
from collections.abc import Sequence
from typing import Any


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

    Args:
        values: A data frame, or anything else.
        names: Names of the columns in training, if they are known.
        description: What the frame is, for the message.
        is_numbered: Whether the names may be those that arrays get, which any data frame of as many columns fits.

    Raises:
        ValueError: Columns of the training are missing.
    """
    known = to_texts(names)
    if not is_data_frame(values) or not known:
        return values
    if is_numbered and set(known) != {str(column) for column in values.columns}:
        return values
    return select_columns(values, known, description)


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
