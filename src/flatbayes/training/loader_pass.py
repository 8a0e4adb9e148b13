"""A pass over a user's loader before training, which counts the labelled examples and checks the batches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset

from flatbayes.core.input_trees import count_examples, split_batch
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import DataSource, DataSplits, is_array_pair, load_training_splits
from flatbayes.data.checks import check_finite
from flatbayes.data.hold_out import HELD_OUT_FRACTION, choose_held_out
from flatbayes.likelihoods import Likelihood
from flatbayes.prediction.example_batches import (
    batch_examples,
    has_tree_items,
    is_tree_pair,
    read_targets,
    take_examples,
)
from flatbayes.prediction.labelled import infer_task

DATA_ADVICE = (
    "Pass data splits, a Dataset, a pair (inputs, targets) of tensors, arrays or data frames, or a DataLoader (or "
    "list) of (inputs, targets) batches"
)


@dataclass(frozen=True)
class LoaderPass:
    """What one pass over a loader gave.

    Attributes:
        num_data: Number of labelled examples.
        num_batches: Number of batches.
        example_batch: Labelled inputs and targets of the first batch that has some.
        smallest_inputs: Inputs of the smallest batch.
    """

    num_data: int
    num_batches: int
    example_batch: tuple[Any, Tensor]
    smallest_inputs: Any


def normalize_data(data: Any, val: Any = None, batch_size: int = 1, likelihood: Any = None, seed: int = 0) -> Any:
    """Data of `fit` as splits, or as an iterable of batches with a length.

    Pairs of arrays and map-style datasets are read into memory; where inputs are dictionaries or tuples of tensors,
    batches are made of them as they are. A loader of an iterable-style dataset needs no
    length.

    Args:
        data: What the user gave.
        val: Validation data that the user gave beside it.
        batch_size: Batch size for an iterable-style dataset, and for inputs that are dictionaries or tuples.
        likelihood: What the user gave; a Gaussian makes whole numbers regression targets.
        seed: Seed of the order of batches that are made here.

    Raises:
        TypeError: They are none of these, or data and validation data are of different kinds.
        ValueError: They are empty.
    """
    if isinstance(data, IterableDataset):
        data = _batch_stream(data, batch_size)
    if is_tree_pair(data) or has_tree_items(data):
        generator = make_generator(Stream.BATCHES, seed)
        data = batch_examples(data, batch_size, shuffle=True, generator=generator)
    if isinstance(data, DataSplits):
        if val is not None:
            raise TypeError("The splits have a validation split: leave out val, or replace it in the splits.")
        return data
    if is_array_pair(data) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
        return load_training_splits(data, val, infer_task(likelihood))
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, DataSource):
        raise TypeError(f"A {type(data).__name__} must be read first: pass {type(data).__name__}(...).load(seed=0).")
    is_plain = isinstance(data, Tensor | np.ndarray | Mapping | str | bytes | Iterator) or hasattr(data, "columns")
    if is_plain or not (hasattr(data, "__iter__") and hasattr(data, "__len__")):
        reason = " can be read only once" if isinstance(data, Iterator) else " is not data to train on"
        raise TypeError(f"A {type(data).__name__}{reason}. {DATA_ADVICE}.")
    if len(data) == 0:
        raise ValueError(f"There are no batches: the {type(data).__name__} is empty. {DATA_ADVICE}.")
    return data


def hold_out_examples(data: Any, likelihood: Any, seed: int) -> tuple[Any, Any, int]:
    """Hold out validation examples, where inputs are dictionaries or tuples of tensors that are given one by one.

    Args:
        data: What the user gave.
        likelihood: What the user gave; a Gaussian makes whole numbers regression targets.
        seed: Seed of the choice.

    Returns:
        Training examples, validation examples, and the number of the latter; the data, None and 0 for other data, or
        where there would be too few.
    """
    if not (is_tree_pair(data) or has_tree_items(data)):
        return data, None, 0
    targets = read_targets(data)
    has_classes = targets.ndim == 1 and not targets.is_floating_point() and infer_task(likelihood) != "regression"
    rows = choose_held_out(targets, HELD_OUT_FRACTION, seed, is_regression=not has_classes)
    if rows is None:
        return data, None, 0
    train, val = (take_examples(data, part) for part in rows)
    return train, val, len(rows[1])


def normalize_validation(val: Any, batch_size: int) -> Iterable[Any]:
    """Validation data beside a loader, as an iterable of batches.

    Raises:
        TypeError: It is a pair of arrays, or splits.
    """
    if isinstance(val, IterableDataset):
        return _batch_stream(val, batch_size)
    if isinstance(val, Dataset) or is_tree_pair(val):
        return batch_examples(val, batch_size)
    if isinstance(val, DataSplits | Tensor | np.ndarray | Iterator | str) or is_array_pair(val):
        raise TypeError(
            "Beside a loader, val is a loader too, or a list of batches or a dataset that are ready for the model; "
            f"got a {type(val).__name__}."
        )
    return val  # type: ignore[no-any-return]


def _batch_stream(dataset: IterableDataset[Any], batch_size: int) -> DataLoader[Any]:
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            "An IterableDataset without a length cannot be divided into epochs of batches: give it __len__, or pass "
            "DataLoader(dataset, batch_size=...)."
        )
    return DataLoader(dataset, batch_size)


def convert_integers(inputs: Any) -> Any:
    """Inputs with tensors of integers as floating numbers of the default dtype."""

    def convert(leaf: Any) -> Any:
        is_integer = isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
        return leaf.to(torch.get_default_dtype()) if is_integer else leaf

    return tree_map(convert, inputs)


def select_labelled(likelihood: Likelihood, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
    """The examples of a batch that have a target.

    Args:
        likelihood: Says which examples have one.
        inputs: Inputs of the batch.
        targets: From `Likelihood.prepare_targets`.
    """
    is_labelled = likelihood.find_labelled(targets)
    if is_labelled is None or bool(is_labelled.all()):
        return inputs, targets
    return tree_map(lambda leaf: leaf[is_labelled] if isinstance(leaf, Tensor) else leaf, inputs), targets[
        is_labelled
    ]


def read_pass(loader: Iterable[Any], likelihood: Likelihood, *, first_only: bool = False) -> LoaderPass:
    """Read a loader once and check its batches.

    Args:
        loader: Gives `(inputs, targets)` batches.
        likelihood: Checks the targets.
        first_only: Read the first batch only.

    Raises:
        ValueError: There are no batches or no labels, or a batch is malformed; the message says which.
    """
    num_data, num_batches, example_batch, smallest = 0, 0, None, None
    for index, batch in enumerate(loader):
        try:
            inputs, targets = split_batch(batch)
            targets = likelihood.prepare_targets(targets)
            for leaf in tree_leaves(inputs):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    check_finite(leaf, "inputs of the batch")
        except (ValueError, TypeError) as error:
            raise ValueError(f"Batch {index} of the loader (counted from 0): {error}") from error
        labelled = select_labelled(likelihood, inputs, targets)
        num_data, num_batches = num_data + len(labelled[1]), num_batches + 1
        if example_batch is None and len(labelled[1]):
            example_batch = labelled
        smallest = inputs if smallest is None or count_examples(inputs) < count_examples(smallest) else smallest
        if first_only and example_batch is not None:
            break
    if num_batches == 0:
        raise ValueError(format_empty_loader(loader))
    if example_batch is None:
        raise ValueError("None of the targets of the loader has a label. Training needs labelled examples.")
    return LoaderPass(num_data, num_batches, example_batch, smallest)


def format_empty_loader(loader: Iterable[Any]) -> str:
    """Message for a loader that gives no batch."""
    size = getattr(loader, "batch_size", None)
    drops = f": its data set is smaller than batch_size={size}" if getattr(loader, "drop_last", False) else ""
    return (
        f"The loader gives no batch{drops}. Use a smaller batch_size or drop_last=False, or check that the data are "
        "not empty or exhausted."
    )
