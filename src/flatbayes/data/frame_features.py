"""Features from the columns of data frames: numbers, and the categories that the reader of files makes.

Texts have the same meaning as in a CSV file: an empty text, NA and the like are missing numbers, true and false are 1
and 0, and a category is a whole text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.arrays import find_missing, holds_numbers, is_missing, to_floats, to_plain_array
from flatbayes.core.names import shorten
from flatbayes.data.column_names import is_data_frame, order_columns, select_columns, split_feature, to_texts
from flatbayes.data.csv_text import is_mark_of_missing, parse_number
from flatbayes.data.pairs import check_dense
from flatbayes.data.unseen_categories import warn_of_unseen_categories

DESCRIPTION = "data frame"
CALLER_OF_PREDICT = 7
"""Stack level of the code that calls `predict`, counted from a function that `convert_data_frame` calls."""


def convert_inputs(inputs: Any, feature_names: object = ()) -> Any:
    """Inputs in the form of the training: a data frame as an array of its features in their order.

    Arrays of objects, and masked ones, become arrays of numbers. Tensors, and what may be batches, are unchanged.

    Raises:
        ValueError: Columns of the training are missing, or hold no numbers.
        TypeError: The inputs are sparse, or a single column or row of a data frame.
    """
    if is_data_frame(inputs):
        return convert_data_frame(inputs, feature_names)
    check_dense(inputs, "inputs")
    if isinstance(inputs, Tensor) or not hasattr(inputs, "__array__"):
        return inputs
    array = to_plain_array(inputs)
    if array.ndim == 1 and hasattr(inputs, "to_numpy"):
        raise TypeError(
            f"The inputs are a {type(inputs).__name__}, one column or row of a data frame. Select with a list, which "
            "keeps the axis of examples: frame[['column']], or frame.iloc[[0]] for the first row."
        )
    return to_floats(array) if array.dtype == object and holds_numbers(array) else array


def convert_data_frame(inputs: Any, feature_names: object = ()) -> NDArray[Any]:
    """A data frame as an array with the features of the training, in their order.

    Raises:
        ValueError: Columns of the training are missing, or hold no numbers.

    Warns:
        DataWarning: Categories are unknown.
    """
    names = to_texts(feature_names)
    is_numbered = names == [str(k) for k in range(len(names))]  # or trained on an array
    columns = {str(column) for column in inputs.columns}
    sources = [split_feature(name, columns) for name in names]
    if all(category is None for _, category in sources):
        return frame_to_array(order_columns(inputs, names, is_numbered=is_numbered))
    selected = select_columns(inputs, [*dict.fromkeys(name for name, _ in sources)])
    values = {
        name: selected[column] for name, column in zip(map(str, selected.columns), selected.columns, strict=True)
    }
    numeric = {name for name, category in sources if category is None}
    categories = {name: [value for other, value in sources if other == name and value is not None] for name in values}
    features = {name: to_column_numbers(values[name], name) for name in numeric}
    words = {
        name: to_column_words(values[name], levels) for name, levels in categories.items() if name not in numeric
    }
    for name, texts in words.items():
        warn_of_unseen_categories(set(texts.tolist()), name, categories[name], "the data frame", CALLER_OF_PREDICT)
    return np.stack(
        [
            features[name] if value is None else np.isnan(features[name]) if name in numeric else words[name] == value
            for name, value in sources
        ],
        axis=1,
        dtype=np.float64,
    )


def frame_to_array(frame: Any, description: str = DESCRIPTION) -> NDArray[Any]:
    """A copy of a data frame as an array; columns of several types of numbers, or of booleans, become float64.

    Raises:
        ValueError: A column holds something else.
    """
    array = np.array(frame.to_numpy(), copy=True)
    if array.dtype.kind in "biuf":
        return array
    return np.stack([to_column_numbers(frame[name], str(name), description) for name in frame.columns], axis=1)


def to_column_numbers(column: Any, name: str, description: str = DESCRIPTION) -> NDArray[np.float64]:
    """The numbers of a column of numbers, booleans, or texts of these as float64; missing ones are NaN.

    Raises:
        ValueError: It holds something else.
    """
    values = np.asarray(column.to_numpy())
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    is_time = values.dtype.kind in "mM"
    objects = list(values) if is_time else values.ravel().tolist()
    cache = {text: parse_number(text) for text in {value for value in objects if isinstance(value, str)}}
    numbers = [cache[value] if isinstance(value, str) else None if is_time else _to_float(value) for value in objects]
    wrong = [row for row, number in enumerate(numbers) if number is None]
    if not wrong:
        return np.array(numbers, dtype=np.float64)
    first = str(objects[wrong[0]])
    advice = "Encode it as numbers, as in training."
    if is_mark_of_missing(first):
        advice = "If it marks a missing value, write NaN in its place."
    elif is_time or hasattr(objects[wrong[0]], "isoformat"):
        advice = "Convert dates and times to numbers, as in training."
    elif parse_number(first, ",") is not None:
        advice = "It has a decimal comma: replace it by a point, or give pandas.read_csv the argument decimal=','."
    verb = "is not a number" if len(wrong) == 1 else "are not numbers"
    raise ValueError(
        f"Column {name!r} of the {description} must hold numbers, and {len(wrong)} of its {len(numbers)} values "
        f"{verb}; the first is {shorten(first)!r} in row {wrong[0]} (counted from 0). {advice}"
    )


def to_column_words(column: Any, categories: Sequence[str] = ()) -> NDArray[np.object_]:
    """The words of a column; a missing value is the empty word.

    Args:
        column: Column of a data frame.
        categories: Categories of the training data. A whole number that pandas holds as a fraction, since others are
            missing, is written without a point if that is a category.
    """
    values = np.asarray(column.to_numpy(), dtype=object)
    levels = set(categories)
    pairs = zip(values, find_missing(values), strict=True)
    texts = np.empty(len(values), dtype=object)
    texts[:] = ["" if missing else _to_word(value, levels) for value, missing in pairs]
    return texts


def list_other_columns(frame: Any) -> list[str]:
    """Names of the columns that are neither numbers nor booleans, as far as the frame says so by their types.

    A column of objects counts as numbers if all its objects are.
    """
    others = []
    for name in frame.columns:
        column = frame[name]
        values = np.asarray(column.to_numpy())
        is_numeric = values.dtype.kind in "biuf" or (values.dtype == object and holds_numbers(values))
        if not is_numeric or str(getattr(column, "dtype", "")) == "category":
            others.append(str(name))
    return others


def _to_float(value: Any) -> float | None:
    if is_missing(value):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _to_word(value: Any, categories: set[str]) -> str:
    text = str(value)
    if text not in categories and isinstance(value, float) and value.is_integer() and str(int(value)) in categories:
        return str(int(value))
    return text
