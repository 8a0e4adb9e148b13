"""Splitting of prediction inputs into chunks of batches with bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.data import LazyImages
from flatbayes.data.checks import check_finite
from flatbayes.likelihoods import Predictive

BATCHES_PER_CHUNK = 32

Inputs = Tensor | LazyImages | NDArray[np.generic] | Iterable[Any]
"""One tensor, array or LazyImages of all examples, or an iterable of batches: `inputs` or `(inputs, ...)`."""


def iter_chunks(
    inputs: Inputs, batch_size: int, batches_per_chunk: int = BATCHES_PER_CHUNK
) -> Iterator[Sequence[Tensor]]:
    """Yield lists of batches of inputs.

    A tensor or array forms one chunk, because it is in memory already. An iterable is read once.

    Args:
        inputs: The examples. If a batch of an iterable is a tuple or list, its first element holds the inputs and the
            others are ignored.
        batch_size: Examples per batch; batches of an iterable keep their size.
        batches_per_chunk: Maximum number of batches of an iterable that are in memory at once.

    Raises:
        ValueError: `batch_size` is below 1, or a batch does not hold a tensor or array.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if isinstance(inputs, Tensor | np.ndarray):
        examples = _to_tensor(inputs)
        if len(examples):
            yield examples.split(batch_size)
        return
    batches = iter(inputs.split(batch_size) if isinstance(inputs, LazyImages) else inputs)
    while chunk := [_to_tensor(batch) for batch in islice(batches, batches_per_chunk)]:
        yield chunk


def check_finite_inputs(batches: Sequence[Tensor], first_row: int, feature_names: Sequence[str] = ()) -> None:
    """Check that inputs hold no NaN and no infinity.

    Args:
        batches: The inputs.
        first_row: Row number of the first example.
        feature_names: One name per feature, if known.

    Raises:
        ValueError: Some values are not finite; the message says how many, and where the first is.
    """
    for batch in batches:
        names = feature_names if batch.ndim == 2 and batch.shape[1] == len(feature_names) else ()
        check_finite(batch, "inputs", names, first_row)
        first_row += len(batch)


def check_finite_predictions(predictive: Predictive, first_row: int) -> None:
    """Check that the predictions for finite inputs are finite.

    Raises:
        RuntimeError: Some are not.
    """
    is_finite = predictive.mean.isfinite().flatten(1) if predictive.mean.ndim > 1 else predictive.mean.isfinite()
    rows = (~(is_finite.all(1) if is_finite.ndim > 1 else is_finite)).nonzero().flatten()
    if len(rows):
        raise RuntimeError(
            f"The predictions of {len(rows)} examples are not finite although their inputs are; the first is in row "
            f"{first_row + int(rows[0])} (counted from 0). Some networks overflow there: check the scale of these "
            "inputs, and whether the training diverged."
        )


def cast_floating(inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Convert floating-point inputs to the precision of the networks, if they have one; other types stay."""
    return inputs if dtype is None or not inputs.is_floating_point() else inputs.to(dtype)


def _to_tensor(batch: object) -> Tensor:
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(np.ascontiguousarray(batch))
    if not isinstance(batch, Tensor):
        raise ValueError(
            f"Expected a tensor, an array, or batches of them, got a {type(batch).__name__}. For other inputs, "
            "pass a DataLoader or another iterable of (inputs, ...) batches."
        )
    return batch
