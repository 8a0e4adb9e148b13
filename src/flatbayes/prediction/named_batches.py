"""Batches of a loader whose labels are names of classes, and their numbers in place of the names."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from flatbayes.core.arrays import check_missing_labels
from flatbayes.core.batch_targets import split_labels
from flatbayes.core.input_trees import holds_texts
from flatbayes.data.in_memory import encode_texts
from flatbayes.likelihoods.labels import encode_labels


class NumberedBatches:
    """A loader of batches in which names of classes are numbers; its other attributes are those of the loader.

    Args:
        loader: Iterable of batches, pairs `(inputs, labels)` or dictionaries with labels.
        class_names: Names of the classes, in the order of their numbers.
    """

    def __init__(self, loader: Iterable[Any], class_names: tuple[str, ...]) -> None:
        self.loader, self.class_names = loader, class_names

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield number_batch(batch, self.class_names)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)


def number_batch(batch: Any, class_names: object) -> Any:
    """A batch with the numbers of its labels if these are names; any other batch is unchanged.

    Raises:
        ValueError: A label is not the name of a class.

    Examples:
        >>> number_batch(([1.0, 2.0], ["b", "a"]), ["a", "b"])
        ([1.0, 2.0], tensor([1, 0]))
    """
    pair = _split_names(batch)
    return batch if pair is None else (pair[0], encode_labels(pair[1], class_names))


def has_named_batches(loader: Iterable[Any]) -> bool:
    """Whether the labels of the first batch are names; the batch is read."""
    return _split_names(next(iter(loader), None)) is not None


def read_class_names(loader: Iterable[Any], description: str) -> set[str]:
    """The distinct labels of a loader, which is read once; errors begin with the description.

    Raises:
        ValueError: A label is missing, or those of a batch are no names.
    """
    names = set[str]()
    for index, batch in enumerate(loader):
        pair, place = _split_names(batch), f"{description}: Batch {index} of the loader (counted from 0)"
        if pair is None:
            raise ValueError(
                f"{place} has labels that are not names, and the labels of the first training batch are names of "
                "classes. Give names in all batches, or numbers in all."
            )
        labels = np.asarray(pair[1], dtype=object)
        check_missing_labels(labels, f"{place}: its labels")
        names.update(map(str, labels.tolist()))
    return names


def sort_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order of their numbers, which is that of arrays of names."""
    return encode_texts({"The labels": np.array([*names], dtype=object)})[0]


def _split_names(batch: Any) -> tuple[Any, Any] | None:
    """Inputs and labels of a batch whose labels are names; None for any other batch."""
    try:
        pair = split_labels(batch) if isinstance(batch, Mapping) else batch
    except ValueError:  # no labels, which `split_batch` explains
        return None
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or isinstance(pair[1], str) or not holds_texts(pair[1]):
        return None
    return pair[0], pair[1]
