"""Inputs of one batch as a tensor, or as a tree: a tuple or a dictionary of tensors with one shared batch axis.

Loaders and users give trees in many types: tuples, lists, named tuples, dictionaries, `BatchEncoding` of
transformers, with arrays as leaves. `make_inputs` converts them to plain tuples and dictionaries of tensors, which is
what all code behind it handles. Entries that are None or a bool stay as they are, and so do batches of graphs, which
are inputs or entries as tensors are. Every function here takes a tensor the short way.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import to_plain_array
from flatbayes.core.devices import move_tensor
from flatbayes.core.graph_batches import (
    NODE_TASK_ADVICE,
    GraphBatch,
    count_graphs,
    is_graph,
    is_graph_batch,
    list_graph_entries,
    make_graph_batch,
    map_graph_tensors,
    select_graphs,
)

ModelInputs = Tensor | GraphBatch | dict[str, Any] | tuple[Any, ...]
"""Inputs of one batch: a tensor or a batch of graphs, or a tuple or dictionary of such."""

IGNORE_INDEX = -100
"""Label of an example without a label, as in torch."""
TEXT_ADVICE = (
    "Turn texts into numbers with the tokenizer of the network, such as tokenizer(list(texts), padding=True, "
    'return_tensors="pt"), which gives a dictionary of tensors.'
)
MULTI_LABEL_ADVICE = (
    " For several labels for each example, each 0 or 1, pass likelihood=Bernoulli(num_labels) (on the command line, "
    "--data.task multi_label)."
)

ONE_GRAPH_ADVICE = (
    "For tasks of whole graphs pass a list of graphs, or a DataLoader of PyTorch Geometric, which joins them to "
    f"batches. {NODE_TASK_ADVICE}"
)
FLATTEN_ADVICE = (
    "Flatten targets of several axes, such as steps and channels: pass targets.reshape(len(targets), -1). The "
    "outputs of the network are then the flattened means, followed by the flattened raw scales."
)
"""What to do with targets of a regression that have more than two axes."""
DENSE_ADVICE = (
    " For a class at each position of an example, such as a pixel or a token, pass "
    "likelihood=DenseCategorical(num_classes)."
)


def holds_position_labels(targets: Any) -> bool:
    """Whether targets, a tensor or array, are whole numbers with several axes that can be classes of positions only.

    Rows of 0 and 1, which may be several labels or one-hot, are not.
    """
    is_integer = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if not (is_integer or (isinstance(targets, np.ndarray) and targets.dtype.kind in "biu")):
        return False
    if targets.ndim < 2 or targets.shape[1:] == (1,):
        return False
    return targets.ndim > 2 or not bool(((targets == 0) | (targets == 1) | (targets == IGNORE_INDEX)).all())


def holds_several_labels(targets: Any) -> bool:
    """Whether targets, a tensor or array, are rows of 0 and 1 of which some do not have exactly one 1.

    Some may be NaN or `IGNORE_INDEX`, if there are both a 0 and a 1.
    """
    if targets.ndim != 2 or targets.shape[1] < 2:
        return False
    is_one, is_zero = targets == 1, targets == 0
    is_missing = (targets != targets) | (targets == IGNORE_INDEX)  # NaN is not equal to itself
    if not bool((is_one | is_zero | is_missing).all()) or not bool(is_one.any() & is_zero.any()):
        return False
    return not bool((is_one.sum(1) == 1).all())


def make_inputs(batch: object, name: str = "inputs") -> ModelInputs:
    """Inputs as a tensor, or as plain tuples and dictionaries of tensors.

    A batch is a tensor or array, or a tuple, list or mapping of such; `name` is for messages.

    Raises:
        ValueError: A leaf is neither a tensor nor an array, or the numbers of examples differ.
    """
    if isinstance(batch, Tensor):
        return batch
    inputs = cast(ModelInputs, _convert(batch, name))
    sizes = {path: _count_rows(leaf) for path, leaf in _iter_leaves(inputs, name)}
    for path, size in sizes.items():
        if size is None:
            raise ValueError(f"{path} is a single number: every tensor of the inputs must have one row per example.")
    if not sizes:
        raise ValueError(f"{name} holds no tensor.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"All tensors of the inputs must have one row per example, and the numbers differ: {shown}.")
    return inputs


def map_tensors(function: Callable[[Tensor], Tensor], inputs: ModelInputs) -> Any:
    """The inputs with a function applied to every tensor, also to those of graphs."""
    if isinstance(inputs, Tensor):
        return function(inputs)

    def map_leaf(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else map_graph_tensors(function, leaf)

    return _map_leaves(map_leaf, inputs)


def _map_leaves(function: Callable[[Any], Any], inputs: Any) -> Any:
    """The inputs with a function applied to every tensor and every batch of graphs."""
    if isinstance(inputs, dict):
        return {key: _map_leaves(function, value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_map_leaves(function, value) for value in inputs)
    return function(inputs) if isinstance(inputs, Tensor) or is_graph_batch(inputs) else inputs  # None or a bool


def move_batch(batch: tuple[ModelInputs, Tensor], device: torch.device) -> tuple[Any, Tensor]:
    """Inputs and targets on a device."""
    inputs, targets = batch
    return map_tensors(lambda tensor: move_tensor(tensor, device), inputs), move_tensor(targets, device)


def cast_floating(inputs: ModelInputs, dtype: torch.dtype | None) -> Any:
    """The inputs with floating-point tensors in a dtype, and the others as they are; unchanged if it is None."""
    if dtype is None:
        return inputs
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def cast_integers(inputs: ModelInputs) -> Any:
    """The inputs with integers as floating numbers of the default dtype, but for those of graphs, such as edges."""

    def cast_leaf(leaf: Any) -> Any:
        is_integer = isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
        return leaf.to(torch.get_default_dtype()) if is_integer else leaf

    return _map_leaves(cast_leaf, inputs)


def first_tensor(inputs: ModelInputs) -> Tensor:
    """The tensor, or the first one of a tree."""
    return inputs if isinstance(inputs, Tensor) else next(_iter_tensors(inputs, ""))[1]


def first_leaf(inputs: ModelInputs) -> Any:
    """The tensor or batch of graphs, or the first one of a tree."""
    return inputs if isinstance(inputs, Tensor) else next(_iter_leaves(inputs, ""))[1]


def count_examples(inputs: ModelInputs) -> int:
    """Number of examples; 0 of a single number."""
    return _count_rows(first_leaf(inputs)) or 0


def _count_rows(leaf: Any) -> int | None:
    """Number of examples of a tensor or of a batch of graphs; None of a single number."""
    if isinstance(leaf, Tensor):
        return len(leaf) if leaf.ndim else None
    return count_graphs(leaf)


def slice_examples(inputs: ModelInputs, rows: int | slice | Tensor) -> Any:
    """The examples of some rows; of a number, that example without a batch axis."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return _map_leaves(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else select_graphs(leaf, rows), inputs)


def split_examples(inputs: ModelInputs, size: int) -> list[Any]:
    """Parts of at most `size` examples, in order."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    starts = range(0, count_examples(inputs), size)
    if len(starts) == 1:
        return [inputs]
    return [slice_examples(inputs, slice(start, start + size)) for start in starts]


def is_input_tree(inputs: object) -> bool:
    """Whether inputs are a dictionary, a tuple or list of tensors, arrays, dictionaries and graphs, or graphs."""
    if isinstance(inputs, tuple | list):
        return len(inputs) > 0 and all(map(is_input_entry, inputs))
    return isinstance(inputs, Mapping) or is_graph_batch(inputs)


def is_input_entry(value: object) -> bool:
    """Whether this can be one of several inputs: a tensor, an array, a dictionary or a batch of graphs."""
    return isinstance(value, Tensor | np.ndarray | Mapping) or is_graph_batch(value)


def list_tensors(inputs: Any, name: str = "inputs") -> dict[str, Tensor]:
    """The tensors by their place, for messages: `inputs`, or `inputs['key']`, `inputs[0]`, `inputs (x)` in a tree."""
    return dict(_iter_tensors(inputs, name))


def flatten_tree(inputs: ModelInputs, name: str) -> dict[str, Tensor]:
    """The tensors by their path: `name`; of a tree `name/k:key` and `name/i:index`; and of graphs `name/g:key`."""
    return dict(_iter_tensors(inputs, name, "/k:{}", "/i:{}", "/g:{}"))


def unflatten_tree(tensors: Mapping[str, Tensor], name: str) -> ModelInputs:
    """The inverse of `flatten_tree`; entries that are no tensors are lost.

    Raises:
        KeyError: There is no tensor of this name.
    """
    if name in tensors:
        return tensors[name]
    prefix, entries = f"{name}/", dict[str, Any]()
    for path in tensors:
        if path.startswith(prefix):
            segment = path[len(prefix) :].partition("/")[0]
            entries[segment] = None
    if not entries:
        raise KeyError(name)
    values = {segment: unflatten_tree(tensors, prefix + segment) for segment in entries}
    if all(segment.startswith("i:") for segment in values):
        return tuple(values[f"i:{k}"] for k in range(len(values)))
    if all(segment.startswith("g:") for segment in values):
        entries = {segment.removeprefix("g:"): value for segment, value in values.items()}
        return cast(ModelInputs, make_graph_batch(entries))
    return {segment.removeprefix("k:"): value for segment, value in values.items()}


def _convert(batch: Any, name: str) -> Any:
    if isinstance(batch, Tensor) or batch is None or isinstance(batch, bool) or is_graph_batch(batch):
        return batch
    if is_graph(batch):
        raise ValueError(f"{name} is one graph, a {type(batch).__name__}. {ONE_GRAPH_ADVICE}")
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        array = np.ascontiguousarray(to_plain_array(batch))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if isinstance(batch, Mapping):
        return {str(key): _convert(join_numbers(value), f"{name}[{key!r}]") for key, value in batch.items()}
    if isinstance(batch, tuple | list) and not all(isinstance(value, str | int | float) for value in batch):
        return tuple(_convert(value, f"{name}[{k}]") for k, value in enumerate(batch))
    if holds_texts(batch):
        advice = " If the network does not need them, leave this entry out." if "[" in name else ""
        raise ValueError(f"There are texts in {name}, and inputs of a network are numbers. {TEXT_ADVICE}{advice}")
    if isinstance(batch, np.ndarray):
        raise ValueError(
            f"{name} is an array of the type {batch.dtype}, and inputs of a network are numbers. Encode it."
        )
    if isinstance(batch, list | tuple):
        raise ValueError(
            f"{name} is a {type(batch).__name__} of {len(batch)} numbers, and inputs of a network are tensors or "
            "arrays. Make one array of all rows, of one length: a tokenizer does with padding=True and "
            'return_tensors="pt".'
        )
    raise ValueError(
        f"{name} is a {type(batch).__name__}, and inputs of a network are tensors or arrays, or tuples and "
        "dictionaries of them. Leave other entries out, or convert them in the data set or the collate function."
    )


def holds_texts(values: object) -> bool:
    """Whether values are texts: a str, or a list, tuple or series of them, of which the first is looked at.

    An array of texts has one axis: with two it is a table.
    """
    if isinstance(values, np.ndarray) or hasattr(values, "iloc"):
        values = np.asarray(values)[:1].tolist()
    return isinstance(values, str) or (
        isinstance(values, list | tuple) and bool(values) and isinstance(values[0], str)
    )


def join_numbers(value: Any) -> Any:
    """A nested list of numbers as an array, if its rows have one length; anything else is unchanged."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(value, list) or not isinstance(first, int | float):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        return value
    return array if array.dtype.kind in "biuf" else value


def _iter_leaves(
    inputs: Any, path: str, key_format: str = "[{!r}]", index_format: str = "[{}]"
) -> Iterator[tuple[str, Any]]:
    """Tensors and batches of graphs, with their paths."""
    if isinstance(inputs, Tensor) or is_graph_batch(inputs):
        yield path, inputs
    elif isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from _iter_leaves(value, path + key_format.format(key), key_format, index_format)
    elif isinstance(inputs, tuple | list):
        for k, value in enumerate(inputs):
            yield from _iter_leaves(value, path + index_format.format(k), key_format, index_format)


def _iter_tensors(
    inputs: Any, path: str, key_format: str = "[{!r}]", index_format: str = "[{}]", graph_format: str = " ({})"
) -> Iterator[tuple[str, Tensor]]:
    """Tensors with their paths, also those of graphs."""
    for leaf_path, leaf in _iter_leaves(inputs, path, key_format, index_format):
        if isinstance(leaf, Tensor):
            yield leaf_path, leaf
        else:
            for name, value in list_graph_entries(leaf).items():
                yield from _iter_leaves(value, leaf_path + graph_format.format(name), key_format, index_format)
