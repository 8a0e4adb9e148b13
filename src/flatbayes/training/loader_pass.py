"""A pass over a user's loader before training, which counts the labelled examples and checks the batches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flatbayes.core.input_trees import make_inputs, split_labels
from flatbayes.data import DataSource, DataSplits
from flatbayes.data.checks import check_finite
from flatbayes.likelihoods import Likelihood

DATA_ADVICE = (
    "Pass data splits, a map-style Dataset, a pair (inputs, targets) of tensors or arrays, or a DataLoader (or list) "
    "of (inputs, targets) batches"
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


def normalize_data(data: Any) -> Any:
    """Data of `fit` as splits, a dataset, or an iterable of batches with a length.

    A pair of tensors or arrays becomes a dataset. A loader of an iterable-style dataset needs no length.

    Raises:
        TypeError: They are none of these.
        ValueError: They are empty.
    """
    if isinstance(data, IterableDataset):
        raise TypeError(
            "An IterableDataset has no batches and no length: pass DataLoader(dataset, batch_size=...) of it, with a "
            "likelihood."
        )
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(a, Tensor | np.ndarray) for a in data):
        inputs, targets = (torch.as_tensor(array) for array in data)
        if not (inputs.ndim and targets.ndim) or len(inputs) != len(targets):
            raise ValueError(
                f"Inputs and targets must have the same number of examples, got the shapes {tuple(inputs.shape)} and "
                f"{tuple(targets.shape)}."
            )
        return TensorDataset(inputs, targets)
    if isinstance(data, DataLoader | Dataset | DataSplits):
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


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch, arrays as tensors.

    Raises:
        ValueError: The batch is not a pair of inputs and targets.
    """
    if isinstance(batch, Mapping):
        batch = split_labels(batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        if isinstance(batch, tuple | list):
            kind = f"{kind} of {len(batch)}"
        raise ValueError(
            f"A batch of the loader must be a pair (inputs, targets), got a {kind}. Return such pairs from the "
            "dataset or collate_fn; several inputs may be a tuple or dictionary, ((first, second), targets)."
        )
    inputs, targets = make_inputs(batch[0]), batch[1]
    targets = torch.as_tensor(targets) if isinstance(targets, np.ndarray) else targets
    targets = torch.as_tensor(targets) if isinstance(targets, list | tuple) else targets
    if not isinstance(targets, Tensor) or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise ValueError(
            f"Inputs and targets of a batch must be tensors or arrays, got a {type(inputs).__name__} and a "
            f"{type(targets).__name__}. Convert them in the dataset or collate_fn."
        )
    if targets.ndim == 0 or count_rows(inputs) != len(targets):
        raise ValueError(
            f"Inputs and targets of a batch must have the same number of examples, got {count_rows(inputs)} and "
            f"targets of shape {tuple(targets.shape)}."
        )
    return inputs, targets


def convert_integers(inputs: Any) -> Any:
    """Inputs with tensors of integers as floating numbers of the default dtype."""

    def convert(leaf: Any) -> Any:
        is_integer = isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
        return leaf.to(torch.get_default_dtype()) if is_integer else leaf

    return tree_map(convert, inputs)


def count_rows(inputs: Any) -> int:
    """Number of examples in a batch of inputs."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return len(tensors[0]) if tensors[0].ndim else 0


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
        ValueError: There are no batches, no labels, or a batch is none; the message says which batch.
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
        smallest = inputs if smallest is None or count_rows(inputs) < count_rows(smallest) else smallest
        if first_only and example_batch is not None:
            break
    if num_batches == 0:
        size = getattr(loader, "batch_size", None)
        drops = f": its data set is smaller than batch_size={size}" if getattr(loader, "drop_last", False) else ""
        raise ValueError(
            f"The loader gives no batch{drops}. Use a smaller batch_size or drop_last=False, or check that the data "
            "are not empty or exhausted."
        )
    if example_batch is None:
        raise ValueError("None of the targets of the loader has a label. Training needs labelled examples.")
    return LoaderPass(num_data, num_batches, example_batch, smallest)
