"""Inputs of any kind as chunks of batches: what is held at once stays small, and an iterable is read once."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.data import LazyImages

BATCHES_PER_CHUNK = 32


def iter_chunks(
    inputs: Tensor | LazyImages | NDArray[np.generic] | Iterable[Any],
    batch_size: int,
    batches_per_chunk: int = BATCHES_PER_CHUNK,
) -> Iterator[Sequence[Tensor]]:
    """Lists of batches of inputs.

    A tensor or array is one chunk, since it is in memory already. Of an iterable, at most `batches_per_chunk`
    batches are held; of a batch that is a pair, the inputs come first and the rest is ignored.

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
    while held := [_to_tensor(batch) for batch in islice(batches, batches_per_chunk)]:
        yield held


def _to_tensor(batch: Any) -> Tensor:
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
