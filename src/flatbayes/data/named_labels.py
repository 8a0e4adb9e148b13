"""Datasets of rows whose labels are names of classes, such as those of Hugging Face."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from flatbayes.core.batch_targets import LABEL_KEYS, split_labels
from flatbayes.data.in_memory import encode_texts


class Rows(Dataset[Any]):
    """A map-style dataset of a list of examples, or of a dataset of Hugging Face."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class NumberedLabels(Dataset[Any]):
    """A map-style dataset with numbers in place of the names that are the labels of its items.

    Items are dictionaries with an entry `labels`, or pairs of inputs and a label; `labels` has a number for each
    item.
    """

    def __init__(self, dataset: Dataset[Any], labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self.dataset, self.labels, self.classes = dataset, labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        item, label = self.dataset[index], int(self.labels[index])
        if not isinstance(item, Mapping):
            return item[0], label
        return {key: label if key in LABEL_KEYS else value for key, value in item.items()}


def wrap_rows(data: Any) -> Any:
    """A map-style dataset of rows, of a list or of a dataset of Hugging Face; anything else is unchanged.

    A dictionary is a row, and no batch, if its label is one number or text, or if its `input_ids` are those of one
    text; a pair if its label is a text.

    Examples:
        >>> type(wrap_rows([{"ids": [1, 2, 3], "label": "a"}])).__name__
        'Rows'
    """
    is_list = isinstance(data, list | tuple) or (hasattr(data, "column_names") and hasattr(data, "__getitem__"))
    if not is_list or isinstance(data, Dataset) or not hasattr(data, "__len__") or not len(data):
        return data
    row = data[0]
    if isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], str) and not isinstance(row[0], str):
        return Rows(data)
    keys = [key for key in LABEL_KEYS if key in row] if isinstance(row, Mapping) else []
    is_row = len(keys) == 1 and (_is_one_label(row[keys[0]]) or _holds_numbers(row.get("input_ids")))
    return Rows(data) if is_row else data


def has_named_labels(data: object) -> bool:
    """Whether this is a map-style dataset whose labels are texts; the first item is looked at."""
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset | NumberedLabels) or not len(data):  # type: ignore[arg-type]
        return False
    item = data[0]
    is_labelled = isinstance(item, Mapping) and sum(key in item for key in LABEL_KEYS) == 1
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    return (is_labelled or is_pair) and isinstance(_get_label(item), str)


def number_labels(data: Dataset[Any], val: Any = None) -> tuple[NumberedLabels, NumberedLabels | None]:
    """Training and validation examples with numbers for the names of classes, which are in alphabetic order.

    Raises:
        TypeError: The validation examples are of another kind.
        ValueError: A label is missing.
    """
    if val is not None and not has_named_labels(val):
        raise TypeError(
            "The labels are texts, so val must be a map-style dataset with texts as labels, like the data, with "
            f"which it shares the names of the classes; got a {type(val).__name__}."
        )
    datasets = {"The labels of the training examples": data}
    if val is not None:
        datasets["The labels of the validation examples"] = val
    names, labels = encode_texts({text: _read_labels(dataset) for text, dataset in datasets.items()})
    numbered = [NumberedLabels(*pair, names) for pair in zip(datasets.values(), labels, strict=True)]
    return numbered[0], numbered[1] if val is not None else None


def _read_labels(dataset: Dataset[Any]) -> np.ndarray:
    size: int = len(dataset)  # type: ignore[arg-type]
    return np.array([_get_label(dataset[k]) for k in range(size)], dtype=object)


def _get_label(item: Any) -> Any:
    return split_labels(item)[1] if isinstance(item, Mapping) else item[1]


def _holds_numbers(values: Any) -> bool:
    """Whether this is a list of numbers, or a tensor or array with one axis."""
    if isinstance(values, list | tuple):
        return len(values) > 0 and isinstance(values[0], Number)
    return isinstance(values, Tensor | np.ndarray) and values.ndim == 1


def _is_one_label(label: Any) -> bool:
    return isinstance(label, str | Number) or (isinstance(label, Tensor | np.ndarray) and label.ndim == 0)
