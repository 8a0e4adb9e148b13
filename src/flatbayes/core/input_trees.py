"""Inputs of one batch as a tensor, or as a tree of tensors: a tuple or a dictionary with one shared batch axis.

Loaders and users give trees in many types: tuples, lists, named tuples, dictionaries, `BatchEncoding` of
transformers, with arrays as leaves. `make_inputs` converts them to plain tuples and dictionaries of tensors, which is
what all code behind it handles. Entries that are None or a bool stay as they are. Every function here takes a tensor
the short way.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import to_plain_array
from flatbayes.core.devices import move_tensor

ModelInputs = Tensor | dict[str, Any] | tuple[Any, ...]
"""Inputs of one batch: a tensor, or a tuple or dictionary of such."""

LABEL_KEYS = ("labels", "label", "targets", "target")
"""Names under which a batch that is a dictionary may hold its targets."""

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

    Args:
        batch: A tensor or array; a tuple, list or mapping of such.
        name: What it is, for messages.

    Raises:
        ValueError: A leaf is neither a tensor nor an array, or the numbers of examples differ.
    """
    if isinstance(batch, Tensor):
        return batch
    inputs = cast(ModelInputs, _convert(batch, name))
    sizes = {path: len(leaf) if leaf.ndim else None for path, leaf in _iter_leaves(inputs, name)}
    for path, size in sizes.items():
        if size is None:
            raise ValueError(f"{path} is a single number: every tensor of the inputs must have one row per example.")
    if not sizes:
        raise ValueError(f"{name} holds no tensor.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"All tensors of the inputs must have one row per example, and the numbers differ: {shown}.")
    return inputs


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
    """Inputs and targets of a batch, arrays as tensors.

    Raises:
        ValueError: The batch is not a pair of inputs and targets.
    """
    if isinstance(batch, Mapping):
        batch = split_labels(batch)
    if holds_texts(batch):
        raise ValueError(f"The inputs are texts, and inputs of a network are numbers. {TEXT_ADVICE}")
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
    shape = first_tensor(inputs).shape
    if not (shape and targets.ndim) or shape[0] != len(targets):
        raise ValueError(
            f"Inputs and targets of a batch must have the same number of examples, got the shapes {tuple(shape)} and "
            f"{tuple(targets.shape)}."
        )
    return inputs, targets


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
            "Pass `fit` the dataset in place of a loader, or number the classes from 0, in training, validation and "
            "test data alike: names = sorted(set(labels)) and names.index(label) as the target."
        )
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def map_tensors(function: Callable[[Tensor], Tensor], inputs: ModelInputs) -> Any:
    """The inputs with a function applied to every tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {key: map_tensors(function, value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map_tensors(function, value) for value in inputs)
    return inputs  # None or a bool


def move_batch(batch: tuple[ModelInputs, Tensor], device: torch.device) -> tuple[Any, Tensor]:
    """Inputs and targets on a device.

    Args:
        batch: Inputs and targets, wherever they are.
        device: The device.
    """
    inputs, targets = batch
    return map_tensors(lambda tensor: move_tensor(tensor, device), inputs), move_tensor(targets, device)


def cast_floating(inputs: ModelInputs, dtype: torch.dtype | None) -> Any:
    """The inputs with floating-point tensors in a dtype, and the others as they are; unchanged if it is None."""
    if dtype is None:
        return inputs
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def cast_integers(inputs: ModelInputs) -> Any:
    """The inputs with integers as floating numbers of the default dtype."""

    def cast_tensor(tensor: Tensor) -> Tensor:
        is_integer = not (tensor.is_floating_point() or tensor.is_complex())
        return tensor.to(torch.get_default_dtype()) if is_integer else tensor

    return map_tensors(cast_tensor, inputs)


def first_tensor(inputs: ModelInputs) -> Tensor:
    """The tensor, or the first one of a tree."""
    return inputs if isinstance(inputs, Tensor) else next(_iter_leaves(inputs, ""))[1]


def count_examples(inputs: ModelInputs) -> int:
    """Number of examples."""
    return len(first_tensor(inputs))


def slice_examples(inputs: ModelInputs, rows: int | slice | Tensor) -> Any:
    """The examples of some rows."""
    return inputs[rows] if isinstance(inputs, Tensor) else map_tensors(lambda tensor: tensor[rows], inputs)


def split_examples(inputs: ModelInputs, size: int) -> list[Any]:
    """Parts of at most `size` examples, in order."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    starts = range(0, count_examples(inputs), size)
    return [slice_examples(inputs, slice(start, start + size)) for start in starts]


def is_input_tree(inputs: object) -> bool:
    """Whether inputs are a dictionary, or a tuple or list of tensors, arrays and dictionaries."""
    if isinstance(inputs, tuple | list):
        return len(inputs) > 0 and all(isinstance(entry, Tensor | np.ndarray | Mapping) for entry in inputs)
    return isinstance(inputs, Mapping)


def list_tensors(inputs: Any, name: str = "inputs") -> dict[str, Tensor]:
    """The tensors by their place, for messages: `inputs`, or `inputs['key']` and `inputs[0]` in a tree."""
    return dict(_iter_leaves(inputs, name))


def flatten_tree(inputs: ModelInputs, name: str) -> dict[str, Tensor]:
    """The tensors by their path: `name`, or `name/k:key` and `name/i:index` for the entries of a tree."""
    return dict(_iter_leaves(inputs, name, "/k:{}", "/i:{}"))


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
    return {segment.removeprefix("k:"): value for segment, value in values.items()}


def _convert(batch: Any, name: str) -> Any:
    if isinstance(batch, Tensor) or batch is None or isinstance(batch, bool):
        return batch
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
    """A nested list of numbers as an array, if its rows have one length; anything else is unchanged.

    Args:
        value: An entry of a dictionary of inputs, such as the lists of a tokenizer.
    """
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
) -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield path, inputs
    elif isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from _iter_leaves(value, path + key_format.format(key), key_format, index_format)
    elif isinstance(inputs, tuple):
        for k, value in enumerate(inputs):
            yield from _iter_leaves(value, path + index_format.format(k), key_format, index_format)
