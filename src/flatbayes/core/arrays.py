"""Arrays as users give them: missing values, masked arrays, objects that are numbers, other byte orders."""

from collections.abc import Collection
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatbayes.core.names import format_count

MISSING_WORDS = frozenset(("", "na", "n/a", "#n/a", "#na", "nan", "-nan", "nat", "null", "<na>", "<null>"))
"""Labels in small letters, without surrounding spaces, that stand for a missing label."""
MARKS_OF_MISSING_LABELS = ("None", "?", "??", "--", ".")
"""Labels that may be classes, and often stand for a missing label."""
MISSING_TYPES = ("NAType", "NaTType")
"""Names of the types of pandas.NA and pandas.NaT, whose comparison with themselves is no boolean."""


def is_missing(value: object) -> bool:
    """Whether a value is None, NaN, or NA or NaT of pandas.

    >>> [is_missing(value) for value in (None, float("nan"), 0, "", "NA")]
    [True, True, False, False, False]
    """
    if value is None or type(value).__name__ in MISSING_TYPES:
        return True
    return isinstance(value, Number | np.generic) and bool(value != value)  # NaN differs from itself


def find_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are missing, in the shape of the array."""
    if values.dtype.kind in "biu":
        return np.zeros(values.shape, dtype=bool)
    if values.dtype.kind in "fc":
        is_nan: NDArray[np.bool_] = np.isnan(values)
        return is_nan
    return np.array([is_missing(value) for value in values.ravel().tolist()], dtype=bool).reshape(values.shape)


def find_missing_labels(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which labels are missing, or words that stand for a missing value, such as NA.

    >>> find_missing_labels(np.array(["cat", " ", "NA", None], dtype=object)).tolist()
    [False, True, True, True]
    """
    is_word = [
        isinstance(label, str | bytes) and _to_text(label).strip().lower() in MISSING_WORDS
        for label in labels.ravel().tolist()
    ]
    is_absent: NDArray[np.bool_] = find_missing(labels) | np.array(is_word, dtype=bool).reshape(labels.shape)
    return is_absent


def check_missing_labels(labels: NDArray[Any], description: str, class_names: Collection[str] = ()) -> None:
    """Check that no label is missing, or a word that stands for a missing value.

    Words among `class_names` are not missing; the message begins with `description`.
    """
    flat = labels.ravel().tolist()
    rows = [row for row in np.flatnonzero(find_missing_labels(labels)).tolist() if str(flat[row]) not in class_names]
    if not rows:
        return
    first = flat[rows[0]]
    is_word = isinstance(first, str | bytes)
    word = repr(_to_text(first)) if is_word else str(first)
    advice = f" If {word} is a class, give it a longer name." if is_word and _to_text(first).strip() else ""
    verb = "is" if len(rows) == 1 else "are"
    raise ValueError(
        f"{description}: {len(rows)} of {format_count(labels.size, 'label')} {verb} missing, the first ({word}) in "
        f"row {rows[0]} (counted from 0). Fill them in or leave those examples out.{advice}"
    )


def to_plain_array(values: Any) -> NDArray[Any]:
    """An array in the byte order and precision of the machine; the masked values of a masked array are NaN.

    >>> to_plain_array(np.ma.masked_array([1, 2], mask=[False, True])).tolist()
    [1.0, nan]
    """
    if isinstance(values, np.ma.MaskedArray):
        is_masked = np.ma.getmaskarray(values)
        plain = values.data
        if is_masked.any():
            plain = plain.astype(np.float64 if plain.dtype.kind in "biuf" else object)
            plain[is_masked] = np.nan
        values = plain
    array = np.asarray(values)
    if array.dtype == np.longdouble and np.longdouble is not np.float64:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def holds_numbers(values: NDArray[Any]) -> bool:
    """Whether all objects of an array are numbers or missing, and some are numbers.

    >>> holds_numbers(np.array([1, 2.5, None], dtype=object)), holds_numbers(np.array(["1", 2], dtype=object))
    (True, False)
    """
    is_number = [isinstance(value, Number) and not isinstance(value, complex) for value in values.ravel().tolist()]
    return any(is_number) and bool((np.reshape(is_number, values.shape) | find_missing(values)).all())


def holds_fractions(values: NDArray[Any]) -> bool:
    """Whether `holds_numbers` holds for an array of objects, and some are no whole numbers."""
    return holds_numbers(values) and bool((np.nan_to_num(to_floats(values)) % 1 != 0).any())


def to_floats(values: NDArray[Any]) -> NDArray[np.float64]:
    """Objects for which `holds_numbers` holds as float64; missing ones are NaN."""
    return np.where(find_missing(values), np.nan, values).astype(np.float64)


def _to_text(label: str | bytes) -> str:
    return label.decode(errors="replace") if isinstance(label, bytes) else label
