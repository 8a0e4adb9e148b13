"""Splitting of prediction inputs into chunks of batches with bounded memory."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Number
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from flatbayes.core.batch_targets import LABEL_KEYS
from flatbayes.core.graph_batches import is_graph, is_graph_batch
from flatbayes.core.input_trees import (
    TEXT_ADVICE,
    ModelInputs,
    count_examples,
    flatten_tree,
    holds_texts,
    is_input_entry,
    make_inputs,
    split_examples,
)
from flatbayes.core.names import format_count
from flatbayes.core.network_interface import GRAPHS, InputStructure
from flatbayes.data import LazyImages
from flatbayes.data.checks import check_finite
from flatbayes.data.column_names import fill_missing
from flatbayes.data.frame_features import convert_inputs
from flatbayes.data.standardize import SEQUENCE_AXES, Standardize
from flatbayes.likelihoods import DistributionPredictive, Predictive
from flatbayes.likelihoods.labels import to_tensor
from flatbayes.prediction.placement import count_bytes

MAX_CHUNK_EXAMPLES, MAX_CHUNK_BYTES = 2**16, 2**28
"""Largest chunk of examples that is in memory at once, with its predictions (256 MiB); all networks are drawn again
for every chunk."""

MAX_BATCH_ELEMENTS = 2**22
"""Largest number of input elements of a forward pass that predicts every position of its examples."""

Inputs = Tensor | LazyImages | NDArray[np.generic] | Dataset[Any] | Iterable[Any]
"""One tensor, array or LazyImages of all examples, a dataset or list of graphs, or an iterable of batches: `inputs`
or `(inputs, ...)`."""


def count_chunk_examples(bytes_per_example: int) -> int:
    """Number of examples of a chunk, at least 1, by the bytes of an example and of its prediction."""
    return max(1, min(MAX_CHUNK_EXAMPLES, MAX_CHUNK_BYTES // max(1, bytes_per_example)))


def list_shapes(inputs: ModelInputs) -> list[torch.Size]:
    """The shape of one example in each tensor."""
    return [tensor.shape[1:] for tensor in flatten_tree(inputs, "inputs").values()]


def count_elements(inputs: ModelInputs) -> int:
    """Number of elements of the largest tensor of one example, at least that of its positions."""
    return max(1, *(shape.numel() for shape in list_shapes(inputs)))


def iter_chunks(
    inputs: Inputs,
    batch_size: int,
    structure: InputStructure = None,
    predictive_bytes: int = 0,
    *,
    has_positions: bool = False,
) -> Iterator[Sequence[Any]]:
    """Yield chunks: lists of batches that take at most `MAX_CHUNK_BYTES` with their predictions, or of one batch.

    A tensor or array forms one chunk, because it is in memory already, unless every position of an example is
    predicted, which may take far more. An iterable is read once.

    Args:
        inputs: The examples. If a batch of an iterable is a tuple or list, its first element holds the inputs and the
            others are ignored.
        batch_size: Examples per batch; batches of an iterable keep their size.
        structure: Keys, or number, of the inputs of training, if they were more than a tensor.
        predictive_bytes: Bytes of the prediction for an example, or for a position.
        has_positions: Whether every position of an example is predicted, so that batches of large examples of an
            array are smaller than `batch_size`.

    Raises:
        ValueError: `batch_size` is no whole number or below 1, or a batch does not hold a tensor or array.
        TypeError: The inputs come with their targets.
    """
    if not isinstance(batch_size, Integral):
        raise ValueError(f"batch_size must be a whole number, got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if is_input_entry(inputs) or is_graph(inputs) or is_input_tuple(inputs, structure):
        examples = to_inputs(inputs, structure)
        if count_examples(examples) and has_positions:
            yield from _chunk_positions(examples, batch_size, predictive_bytes)
        elif count_examples(examples):
            yield split_examples(examples, batch_size)
        return
    refuse_pair(inputs)
    chunk, num_examples = list[Any](), 0
    for batch in inputs.split(batch_size) if isinstance(inputs, LazyImages) else cast(Iterable[Any], inputs):
        examples = to_inputs(batch, structure)
        if chunk and has_positions and list_shapes(examples) != list_shapes(chunk[0]):
            yield chunk  # outputs of different sizes cannot be joined
            chunk, num_examples = [], 0
        chunk.append(examples)
        size = count_examples(chunk[-1])
        num_examples += size
        num_bytes = predictive_bytes * (count_elements(chunk[-1]) if has_positions else 1)
        if num_examples + size > count_chunk_examples(count_bytes(chunk[-1]) // max(1, size) + num_bytes):
            yield chunk
            chunk, num_examples = [], 0
    if chunk:
        yield chunk


def _chunk_positions(examples: ModelInputs, batch_size: int, position_bytes: int) -> Iterator[Sequence[Any]]:
    """Chunks of examples in memory whose predictions, of every position, may take far more memory."""
    elements = count_elements(examples)
    size = min(batch_size, max(1, MAX_BATCH_ELEMENTS // elements))
    batches = split_examples(examples, size)
    count = max(1, count_chunk_examples(position_bytes * elements) // size)
    yield from (batches[start : start + count] for start in range(0, len(batches), count))


def fill_missing_features(batch: ModelInputs, feature_names: object, transform: object) -> ModelInputs:
    """Replace missing numbers of features, [n, features], by the means of training data; others stay as they are."""
    names = feature_names if isinstance(feature_names, list | tuple) else ()
    if not isinstance(batch, Tensor) or not isinstance(transform, Standardize) or not names:
        return batch
    return fill_missing(batch, names, transform.mean) if batch.shape[1:] == (len(names),) else batch


def make_input_tensor(inputs: Any, info: Mapping[str, Any], transform: object) -> Any:
    """All inputs as one tensor in the form of the training, with means in place of missing numbers.

    Lazy images are unchanged.

    Raises:
        ValueError: They are none of these, or a data frame has other columns than in training.
        TypeError: They are sparse, a single column or row of a data frame, or come with their targets.
    """
    refuse_pair(inputs)
    inputs = match_image_layout(convert_inputs(inputs, info.get("feature_names")), info.get("input_shape"))
    if isinstance(inputs, LazyImages):
        return inputs
    return fill_missing_features(to_tensor(inputs), info.get("feature_names"), transform)


def refuse_pair(inputs: Any) -> None:
    """Refuse a pair of inputs and targets, which would be read as two batches of inputs.

    Raises:
        TypeError: They are such a pair.
    """
    entries = inputs if isinstance(inputs, tuple | list) and len(inputs) == 2 else ()
    shapes = [tuple(entry.shape) for entry in entries if hasattr(entry, "shape")]
    if len(shapes) < 2:
        return
    first, second = shapes
    if len(first) > 1 and len(second) == 1:
        raise TypeError(
            f"Expected inputs alone, got a pair of inputs and targets of the shapes {first} and {second}. Pass the "
            "first of the two; evaluate takes pairs."
        )


def match_image_layout(inputs: Any, input_shape: object) -> Any:
    """Images or sequences in the layout in which the network of a pair or dataset gets them; others are unchanged.

    Images [n, height, width] or [n, height, width, channels] become [n, channels, height, width], and sequences that
    a data split stores as such images [n, *axes]. `input_shape` is (channels, height, width) of an image in training,
    or both axes of a sequence, if it is known.
    """
    if not isinstance(inputs, Tensor | np.ndarray) or not isinstance(input_shape, list):
        return inputs
    shape = list(inputs.shape[1:])
    if len(input_shape) == SEQUENCE_AXES and shape == [1, *input_shape]:
        return inputs[:, 0]
    if len(input_shape) != 3:
        return inputs
    if input_shape in (shape, list(inputs.shape)) or input_shape not in ([1, *shape], [*shape[-1:], *shape[:-1]]):
        return inputs
    images = torch.as_tensor(inputs)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def check_finite_inputs(batches: Sequence[ModelInputs], first_row: int, feature_names: object = ()) -> None:
    """Check that inputs hold no NaN and no infinity.

    Feature names that are none, as in a damaged artefact, are ignored.
    """
    known_names = feature_names if isinstance(feature_names, list | tuple) else ()
    for batch in batches:
        num_examples = count_examples(batch)
        for name, tensor in flatten_tree(batch, "inputs").items():
            names = known_names if tensor.ndim == 2 and tensor.shape[1] == len(known_names) else ()
            start = first_row if tensor.shape[:1] == (num_examples,) else 0  # rows of graphs may be nodes
            check_finite(tensor, re.sub("/[kig]:", " ", name), names, start)
        first_row += num_examples


@contextmanager
def explain_shapes(example_shape: object, batches: Sequence[ModelInputs]) -> Iterator[None]:
    """Context of a prediction, whose errors name the shape that inputs had in training, if that is another one.

    `example_shape` is that of one example in training; anything but a list if it is unknown.

    Raises:
        ValueError: The inputs have no batch axis, or the prediction failed on inputs of another shape.
    """
    trees = [flatten_tree(batch, "inputs").values() for batch in batches if not isinstance(batch, Tensor)]
    single = [leaves for leaves in trees if all(leaf.ndim == 1 for leaf in leaves)]
    differing = [
        tuple(batch.shape)
        for batch in batches
        if isinstance(batch, Tensor) and isinstance(example_shape, list) and list(batch.shape[1:]) != example_shape
    ]
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if single:
            raise ValueError(
                f"Every tensor of the inputs has one axis, as those of one example have, and the network fails on "
                f"them: {error}. Inputs need a batch axis: pass tensor[None] for each tensor of one example."
            ) from error
        if not differing:
            raise
        expected = ", ".join(map(str, ("n", *cast(list[int], example_shape))))
        advice = ""
        if list(differing[0]) == example_shape:
            advice = ". A list holds batches: for one tensor of each example pass torch.stack(list)"
        raise ValueError(
            f"The network was trained on inputs of shape ({expected}), and got the shape {differing[0]}: "
            f"{error}{advice}"
        ) from error


def check_batch_axis(inputs: object, example_shape: object) -> None:
    """Refuse one example without a batch axis."""
    if isinstance(inputs, Tensor) and (inputs.ndim == 0 or list(inputs.shape) == example_shape != []):
        raise ValueError(
            f"Inputs need a batch axis, got the shape {tuple(inputs.shape)}, that of one example: pass inputs[None]."
        )


def check_finite_predictions(predictive: Predictive, first_row: int) -> None:
    """Check that the predictions for finite inputs are finite.

    Raises:
        RuntimeError: Some are not.
    """
    rows = find_nonfinite_rows(predictive)
    if len(rows):
        raise RuntimeError(
            f"The predictions of {format_count(len(rows), 'example')} are not finite although their inputs are; the "
            f"first is in row {first_row + int(rows[0])} (counted from 0). Some networks overflow there: check the "
            "scale of these inputs, and whether the training diverged."
        )


def find_nonfinite_rows(predictive: Predictive) -> Tensor:
    """Rows of the examples whose mean prediction is not finite; none for a predictive of the user without a mean."""
    if isinstance(predictive, DistributionPredictive) and not predictive.has_finite_mean:
        is_finite = predictive.member_outputs.isfinite().all(-1).all(0)
        return (~is_finite).nonzero().flatten()
    mean = getattr(predictive, "mean", None)
    if not isinstance(mean, Tensor):
        return torch.empty(0, dtype=torch.int64)
    num_skipped = getattr(predictive, "num_skipped", 0)
    is_finite = (mean[:, num_skipped:] if num_skipped else mean).isfinite()
    while is_finite.ndim > 1:
        is_finite = is_finite.all(-1)
    return (~is_finite).nonzero().flatten()


def is_input_tuple(inputs: object, structure: InputStructure) -> bool:
    """Whether a tuple or list holds the inputs of a network that was trained on as many tensors."""
    if not isinstance(inputs, tuple | list) or not isinstance(structure, int) or len(inputs) != structure:
        return False
    return all(map(is_input_entry, inputs)) and (
        isinstance(inputs, tuple) or len({len(value) for value in inputs}) == 1
    )


def to_inputs(batch: object, structure: InputStructure = None) -> ModelInputs:
    """Inputs of a batch, which may be `inputs` or `(inputs, ...)`, in the structure of training.

    Raises:
        ValueError: The batch holds no such inputs.
    """
    if isinstance(batch, list | tuple) and batch and not is_input_tuple(batch, structure):
        batch = batch[0]
    if isinstance(batch, str) or holds_texts(batch):
        raise ValueError(f"The inputs are texts, and inputs of a network are numbers. {TEXT_ADVICE}")
    if isinstance(batch, Mapping):
        if isinstance(structure, tuple):
            missing = [key for key in structure if key not in batch]
            if missing:
                raise ValueError(
                    f"The network was trained on the inputs {', '.join(structure)}, and the batch lacks "
                    f"{', '.join(missing)}: it has {', '.join(map(str, batch)) or 'no entries'}."
                )
            batch = {key: batch[key] for key in structure}
        else:
            batch = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    elif isinstance(structure, tuple):
        raise ValueError(
            f"The network was trained on a dictionary with {', '.join(structure)}, and got a {type(batch).__name__}: "
            "pass such a dictionary, or batches of them."
        )
    if isinstance(structure, int) and not (isinstance(batch, tuple | list) and len(batch) == structure):
        raise ValueError(
            f"The network was trained on a tuple of {format_count(structure, 'tensor')}, and got a "
            f"{type(batch).__name__}: pass such a tuple, or batches of them."
        )
    if structure == GRAPHS and not (is_graph_batch(batch) or is_graph(batch)):
        raise ValueError(
            f"The network was trained on graphs, and got a {type(batch).__name__}: pass a list of graphs."
        )
    if not (is_input_entry(batch) or is_graph(batch) or isinstance(batch, list | tuple)):
        advice = "For other inputs, pass a DataLoader or another iterable of (inputs, ...) batches."
        if isinstance(batch, Number):
            advice = "Make an array of a nested list, numpy.asarray(inputs), one row for each example."
        raise ValueError(f"Expected a tensor, an array, or batches of them, got a {type(batch).__name__}. {advice}")
    return make_inputs(batch)


def convert_integers(batch: Tensor, trained_on: str | None, dtype: torch.dtype | None) -> Tensor:
    """Integers as floating numbers, for a network that was trained on those.

    `trained_on` is the entry `inputs` of the metadata: "floating", or "converted" for integers that were converted.

    Raises:
        ValueError: They are images as they are stored, and those of training were not.
    """
    if trained_on is None or batch.is_floating_point():
        return batch
    if trained_on == "floating" and batch.dtype == torch.uint8 and batch.ndim > 2:
        raise ValueError(
            "The inputs are uint8 images, and the network was trained on floating-point ones: convert and scale "
            "them as in training, such as images.float() / 255."
        )
    return batch.to(dtype or torch.get_default_dtype())
