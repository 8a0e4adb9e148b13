"""Examples in memory, pairs and datasets: what is one, and whether the rows of inputs and targets belong together."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from flatbayes.core.graph_batches import is_graph, is_graph_list, join_graphs
from flatbayes.core.input_trees import ONE_GRAPH_ADVICE, is_input_entry, is_input_tree, join_numbers
from flatbayes.core.names import shorten
from flatbayes.data.checks import DataWarning
from flatbayes.data.column_names import is_data_frame

MIN_LISTED_ROWS = 3
"""Smallest number of tensors in a list that are rows: two are rather the two inputs of a network, or two batches."""


def is_array_pair(data: object) -> bool:
    """Whether this is a pair of inputs, a tensor or what NumPy converts to an array, and the targets of all examples.

    A list of one tensor or array for each example is such an array.

    Examples:
        >>> is_array_pair((torch.zeros(3, 2), torch.zeros(3))), is_array_pair((np.zeros((3, 2)), ["a", "b", "a"]))
        (True, True)
        >>> is_array_pair("task.csv"), is_array_pair([(torch.zeros(3, 2), torch.zeros(3))] * 2)
        (False, False)
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    is_array = isinstance(data[0], Tensor) or hasattr(data[0], "__array__") or hasattr(data[0], "toarray")
    return is_array or is_list_of_rows(*data)


def is_tree_pair(data: object) -> bool:
    """Whether this is a pair of inputs that are a dictionary or tuple of tensors, and the targets of all examples.

    Examples:
        >>> from torch import zeros
        >>> ids = zeros(3, 2).long()
        >>> is_tree_pair(({"ids": ids}, zeros(3))), is_tree_pair([{"ids": ids}, {"ids": ids}])
        (True, False)
    """
    if not isinstance(data, tuple | list) or len(data) != 2 or not is_input_tree(data[0]):
        return False
    if is_list_of_rows(data[0], data[1]):
        return False
    if isinstance(data[1], tuple | list):
        return bool(data[1]) and all(isinstance(value, Number | str) for value in data[1])
    return isinstance(data[1], Tensor) or hasattr(data[1], "__array__")


def is_list_of_rows(inputs: Any, targets: Any) -> bool:
    """Whether inputs are a list of one tensor, array or list of numbers for each target, of at least three.

    Examples:
        >>> is_list_of_rows([torch.zeros(2)] * 3, [0, 1, 0]), is_list_of_rows([torch.zeros(3, 2)] * 2, torch.zeros(3))
        (True, False)
    """
    if not isinstance(inputs, list | tuple) or len(inputs) < MIN_LISTED_ROWS:
        return False
    if not all(isinstance(row, Tensor | np.ndarray) or _holds_numbers(row) for row in inputs):
        return False
    if isinstance(targets, list | tuple):
        return len(targets) == len(inputs) and all(isinstance(target, Number | str) for target in targets)
    is_array = isinstance(targets, Tensor) or hasattr(targets, "__array__")
    return is_array and bool(targets.shape) and len(targets) == len(inputs)


def _holds_numbers(row: Any) -> bool:
    return isinstance(row, list) and isinstance(join_numbers(row), np.ndarray)


def join_rows(inputs: Any, targets: Any) -> Any:
    """One array of a list of rows, for which `is_list_of_rows` holds; other inputs are unchanged.

    Raises:
        ValueError: The rows have several shapes.
    """
    if not is_list_of_rows(inputs, targets):
        return inputs
    rows = [torch.as_tensor(join_numbers(row) if isinstance(row, list) else row) for row in inputs]
    shapes = list(dict.fromkeys(tuple(row.shape) for row in rows))
    if len(shapes) > 1:
        raise ValueError(
            f"The inputs are a list with one tensor for each example, of several shapes, such as {shapes[0]} and "
            f"{shapes[1]}. Give them one shape, such as by a resize of images or by padding."
        )
    return torch.stack(rows)


def holds_several_inputs(inputs: Any, num_examples: int) -> bool:
    """Whether inputs are a dictionary or tuple of tensors or graphs, and not a list of the rows of one array.

    As many tensors as targets are rows.

    Examples:
        >>> from torch import zeros
        >>> ids = zeros(3, 2)
        >>> holds_several_inputs((ids, ids), 3), holds_several_inputs(list(ids), 3)
        (True, False)
    """
    return is_input_tree(inputs) and (not isinstance(inputs, tuple | list) or len(inputs) != num_examples)


def is_tree_item(item: object) -> bool:
    """Whether an item of a dataset is a dictionary, a graph, or a pair of a graph or several inputs and a target."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return is_graph(item[0]) or is_input_tree(item[0]) or _holds_graph(item[0])
    return isinstance(item, Mapping) or is_graph(item)


def _holds_graph(inputs: Any) -> bool:
    """Whether inputs of one example are several, of which one is a graph."""
    if not isinstance(inputs, tuple | list):
        return False
    return any(map(is_graph, inputs)) and all(is_graph(entry) or is_input_entry(entry) for entry in inputs)


def has_tree_items(data: object) -> bool:
    """Whether this is a map-style dataset of dictionaries, graphs, or pairs of such or several inputs and a target.

    A list of graphs, or a batch of them, is one too.

    Raises:
        ValueError: It is one graph.
    """
    if is_graph(data):
        raise ValueError(f"A {type(data).__name__} is one graph. {ONE_GRAPH_ADVICE}")
    if is_graph_list(data):
        return True
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset) or not len(data):  # type: ignore[arg-type]
        return False
    return is_tree_item(data[0])


def collate_examples(examples: list[Any]) -> Any:
    """A batch of examples, as torch makes it; lists of numbers in dictionaries are rows, and graphs are joined.

    Raises:
        ValueError: They cannot be joined.
    """
    try:
        return _join_examples([_convert_lists(example) for example in examples])
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The examples of the dataset cannot be joined to a batch: {error}. Give them the same shapes, such as "
            "by padding texts to one length; or pass `fit` and `evaluate` DataLoader(dataset, batch_size=..., "
            "collate_fn=...) with a function that joins them."
        ) from error


def _join_examples(examples: list[Any]) -> Any:
    first = examples[0]
    if is_graph(first):
        return join_graphs(examples)
    if isinstance(first, tuple | list) and any(is_graph(entry) or _holds_graph(entry) for entry in first):
        return [_join_examples(list(entries)) for entries in zip(*examples, strict=True)]
    return default_collate(examples)


def _convert_lists(example: Any) -> Any:
    """An example with arrays in place of the lists of numbers of a dictionary, which torch would transpose."""
    if isinstance(example, Mapping):
        return {key: join_numbers(value) for key, value in example.items()}
    if isinstance(example, tuple | list) and len(example) == 2 and isinstance(example[0], Mapping):
        return _convert_lists(example[0]), example[1]
    return example


def check_pair(inputs: Any, targets: Any, description: str) -> None:
    """Check that inputs and targets are dense, that targets are an array or a list, and that rows belong together.

    Raises:
        TypeError: Inputs or targets are sparse, or the targets are something else.
        ValueError: Inputs and targets have the same row labels in another order.

    Warns:
        DataWarning: Inputs and targets have different row labels.
    """
    for name, values in {"inputs": inputs, "targets": targets}.items():
        check_dense(values, f"{name} of the {description}")
    is_sequence = isinstance(targets, Sequence) and not isinstance(targets, str | bytes)
    if not (isinstance(targets, Tensor) or hasattr(targets, "__array__") or is_sequence):
        is_column = is_data_frame(inputs) and isinstance(targets, str) and targets in list(inputs.columns)
        advice = f" Separate the column: (frame.drop(columns={targets!r}), frame[{targets!r}])." if is_column else ""
        raise TypeError(
            f"The targets of the {description} are an array, a tensor, a series or a list with one target for each "
            f"example, got a {type(targets).__name__}: {shorten(repr(targets))}.{advice}"
        )
    check_row_labels(inputs, targets, "inputs", "targets", f" of the {description}")


def check_dense(values: object, description: str) -> None:
    """Refuse a sparse matrix of SciPy.

    Raises:
        TypeError: They are sparse.
    """
    if hasattr(values, "toarray"):
        raise TypeError(
            f"The {description} are sparse, a {type(values).__name__}, and networks take dense ones: call its "
            "method toarray()."
        )


def check_row_labels(first: Any, second: Any, first_name: str, second_name: str, owner: str = "") -> None:
    """Compare the row labels (the index) of two data frames or series, whose rows are matched by position.

    Anything else has no row labels. The names are for messages, and `owner`, with a space before it, is what has
    both.

    Raises:
        ValueError: They have the same row labels in another order, so that position and label say different things.

    Warns:
        DataWarning: They have different row labels.
    """
    indexes: list[Any] = [getattr(values, "index", None) for values in (first, second)]
    if not all(hasattr(index, "equals") for index in indexes) or len(indexes[0]) != len(indexes[1]):
        return
    left, right = indexes
    if left.equals(right):
        return
    labels = list(left), list(right)
    row = next((k for k, (a, b) in enumerate(zip(*labels, strict=True)) if a != b), 0)
    where = (
        f"row {row} (counted from 0) is {labels[0][row]!r} in {first_name} and {labels[1][row]!r} in {second_name}"
    )
    description = f"{first_name[0].upper()}{first_name[1:]} and {second_name}{owner}"
    if Counter(labels[0]) == Counter(labels[1]):
        raise ValueError(
            f"{description} have the same row labels (index) in another order: {where}. Bring {second_name} into "
            f"the order of {first_name}, {second_name}.loc[{first_name}.index]; or, if the rows are in the "
            f"same order already, pass {second_name}.to_numpy()."
        )
    warnings.warn(
        f"{description} have different row labels (index): {where}. Rows are matched by their position. If "
        f"that is right, pass {second_name}.to_numpy(), which leaves out this warning; else select by label.",
        category=DataWarning,
        stacklevel=4,
    )
