"""Inputs and targets of a batch: a pair, a dictionary with labels, or a batch of graphs with targets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import to_plain_array
from flatbayes.core.graph_batches import is_graph, is_graph_batch, split_graph_targets
from flatbayes.core.input_trees import (
    ONE_GRAPH_ADVICE,
    TEXT_ADVICE,
    count_examples,
    first_leaf,
    holds_texts,
    list_tensors,
    make_inputs,
    map_tensors,
)
from flatbayes.core.names import format_count

LABEL_KEYS = ("labels", "label", "targets", "target")
"""Names under which a batch that is a dictionary may hold its targets."""


def split_labels(batch: Mapping[Any, Any]) -> tuple[dict[Any, Any], Any]:
    """Inputs and targets of a batch that is a dictionary.

    Raises:
        ValueError: No entry, or more than one, is called as targets are.
    """
    keys = [key for key in LABEL_KEYS if key in batch]
    if len(keys) != 1:
        raise ValueError(
            f"The batch is a dictionary with the entries {', '.join(map(str, batch))}, of which {len(keys)} are "
            f"called {', '.join(LABEL_KEYS)}. Exactly one must hold the targets; or let the loader return "
            "(inputs, targets)."
        )
    return {key: value for key, value in batch.items() if key != keys[0]}, batch[keys[0]]


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch, arrays as tensors, detached from the graph that computed them.

    Raises:
        ValueError: The batch is not a pair of inputs and targets.
    """
    if isinstance(batch, Mapping):
        batch = split_labels(batch)
    batch = split_graph_targets(batch) if is_graph_batch(batch) else batch
    if holds_texts(batch):
        raise ValueError(f"The inputs are texts, and inputs of a network are numbers. {TEXT_ADVICE}")
    if is_graph(batch):
        raise ValueError(f"A batch is one graph, a {type(batch).__name__}. {ONE_GRAPH_ADVICE}")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        if isinstance(batch, tuple | list):
            kind = f"{kind} of {len(batch)}"
        raise ValueError(
            f"A batch of the loader must be a pair (inputs, targets), got a {kind}. Return such pairs from the "
            "dataset or collate_fn; several inputs may be a tuple or dictionary, ((first, second), targets)."
        )
    if isinstance(batch[1], str | int | float | np.generic) or (isinstance(batch[1], Tensor) and not batch[1].ndim):
        raise ValueError(
            "This is one example, with a number or text as its target, and a batch of examples is needed: pass "
            "DataLoader(examples, batch_size=32), which joins them to batches."
        )
    inputs, targets = make_inputs(batch[0]), batch[1]
    if not isinstance(targets, Tensor) and (hasattr(targets, "__array__") or isinstance(targets, list | tuple)):
        targets = _to_target_tensor(targets)
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"Inputs and targets of a batch must be tensors or arrays, got a {type(inputs).__name__} and a "
            f"{type(targets).__name__}. Convert them in the dataset or collate_fn."
        )
    leaf, count = first_leaf(inputs), count_examples(inputs)
    is_number = isinstance(leaf, Tensor) and not leaf.ndim
    if is_number or not targets.ndim or count != len(targets):
        description = f"{format_count(count, 'graph')} and targets of the shape"
        if isinstance(leaf, Tensor):
            description = f"the shapes {tuple(leaf.shape)} and"
        raise ValueError(
            "Inputs and targets of a batch must have the same number of examples, got "
            f"{description} {tuple(targets.shape)}."
        )
    if any(tensor.requires_grad for tensor in list_tensors(inputs).values()):  # such as features of another network
        inputs = map_tensors(torch.detach, inputs)
    return inputs, targets.detach()


def _to_target_tensor(targets: Any) -> Tensor:
    """Targets of a batch as a tensor.

    Raises:
        ValueError: They are no numbers.
    """
    if isinstance(targets, list | tuple) and any(isinstance(target, Tensor) for target in targets):
        return torch.as_tensor(targets)
    array = to_plain_array(targets)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"The targets of a batch are of the type {array.dtype}, such as {str(array.ravel()[:1].tolist())[:80]}. "
            "`fit` takes names of classes in a loader that one process reads in whole, without num_data, and not of "
            "validation data alone. Otherwise number the classes from 0, in training, validation and test data "
            "alike: names = sorted(set(labels)) and names.index(label) as the target."
        )
    return torch.from_numpy(array if array.flags.writeable else array.copy())
