"""Batches of graphs, dictionaries or tuples of tensors, and batches whose labels are names of classes."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from flatbayes.core.arrays import check_missing_labels
from flatbayes.core.batch_targets import split_batch, split_labels
from flatbayes.core.graph_batches import is_graph, is_graph_list
from flatbayes.core.input_trees import count_examples, holds_texts, slice_examples
from flatbayes.core.names import format_count
from flatbayes.data.arrays import to_inputs
from flatbayes.data.checks import DataWarning
from flatbayes.data.in_memory import encode_texts
from flatbayes.data.named_labels import NumberedLabels, wrap_rows
from flatbayes.data.pairs import collate_examples, is_tree_pair
from flatbayes.data.torch_dataset import read_examples
from flatbayes.likelihoods.labels import encode_labels

TARGETS_BATCH_SIZE = 256
"""Number of graphs that are joined at a time to read their targets."""


def batch_examples(
    data: Any, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None
) -> DataLoader[Any]:
    """A loader of a dataset, a list of graphs, or a pair for which `is_tree_pair` holds.

    Raises:
        ValueError: Inputs and targets of a pair differ in length.
    """
    if is_tree_pair(data):
        inputs, targets = split_batch(data)
        data = [(slice_examples(inputs, k), targets[k]) for k in range(count_examples(inputs))]
    return DataLoader(data, batch_size, shuffle=shuffle, generator=generator, collate_fn=collate_examples)


def read_targets(data: Any) -> Tensor:
    """Targets of all examples of a pair or dataset for which `is_tree_pair` or `has_tree_items` holds.

    Raises:
        ValueError: Targets have several shapes, or an example has none.
    """
    if is_tree_pair(data):
        return split_batch(data)[1]
    if isinstance(data, NumberedLabels):
        return torch.from_numpy(data.labels)
    if is_graph(data[0]):
        return torch.cat([split_batch(batch)[1] for batch in batch_examples(data, TARGETS_BATCH_SIZE)])
    items = (data[k] for k in range(len(data)))
    targets = [split_labels(item)[1] if isinstance(item, Mapping) else item[1] for item in items]
    try:
        return torch.stack([torch.as_tensor(target) for target in targets])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The targets of the dataset cannot be joined to one tensor: {error}.") from error


def take_examples(data: Any, rows: Tensor) -> Any:
    """Some examples of such a pair or dataset, as a pair or dataset."""
    if is_tree_pair(data):
        inputs, targets = split_batch(data)
        return slice_examples(inputs, rows), targets[rows]
    return Subset(data, rows.tolist())


def has_random_order(inputs: Any) -> bool:
    """Whether inputs are a loader that gives the examples in a random order."""
    if not isinstance(inputs, DataLoader):
        return False
    samplers = (inputs.sampler, getattr(inputs.batch_sampler, "sampler", None))
    return any(
        isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
        or (isinstance(sampler, DistributedSampler) and sampler.shuffle)
        for sampler in samplers
    )


def warn_of_loader(inputs: Any) -> None:
    """Warn of a loader that gives examples to predict in a random order, or leaves out those of a smaller last batch.

    In an evaluation, whose inputs have the loader as `batches`, the order does not matter.
    """
    loader = getattr(inputs, "batches", inputs)
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    if isinstance(loader, DataLoader) and type(batch_sampler) is BatchSampler and batch_sampler.drop_last:
        num_examples = len(batch_sampler.sampler) if isinstance(batch_sampler.sampler, Sized) else 0
        num_dropped = num_examples % batch_sampler.batch_size
        if num_dropped:
            warnings.warn(
                f"The loader leaves out {format_count(num_dropped, 'example')} of {num_examples}, which fill no "
                "batch. Make it with drop_last=False.",
                category=DataWarning,
                stacklevel=5,
            )
    if has_random_order(inputs):
        warnings.warn(
            "The loader gives the examples in a random order, so it is unknown which prediction belongs to which "
            "example. Make it with shuffle=False. (evaluate takes labels from the same batches, in any order.)",
            category=DataWarning,
            stacklevel=5,
        )


def convert_dataset(inputs: Any, batch_size: int, *, is_raw: bool) -> Any:
    """The inputs of a dataset, in order; other inputs are unchanged.

    Of items that are pairs, the first entry is used; raw inputs are converted as `fit` converts those of a dataset of
    pairs.
    """
    if is_graph_list(inputs):
        return batch_examples(inputs, batch_size)
    inputs = wrap_rows(inputs)
    if not isinstance(inputs, Dataset):
        return inputs
    is_indexed = not isinstance(inputs, IterableDataset) and len(inputs) > 0  # type: ignore[arg-type]
    if is_raw and is_indexed and isinstance(inputs[0], tuple | list) and len(inputs[0]) == 2:
        examples = read_examples(inputs, type(inputs).__name__)
        return to_inputs(examples.inputs, examples.inputs_description)
    return batch_examples(inputs, batch_size)


class NumberedBatches:
    """A loader of batches in which names of classes are numbers; its other attributes are those of the loader.

    The names are in the order of the numbers.
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
