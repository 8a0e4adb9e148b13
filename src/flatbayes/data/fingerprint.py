"""Fingerprint of the content of data splits, which tells whether data have changed since they were trained on."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flatbayes.core.input_trees import flatten_tree, map_tensors
from flatbayes.core.names import format_count
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.splits import DataSplits, Split

FINGERPRINT_KEY = "data_fingerprint"
"""Key of a configuration, or of the `info` of an artefact, with the fingerprint; absent in flatbayes 0.1."""
MAX_HASHED_BYTES = 2**28
"""Of a larger tensor, evenly spaced rows are hashed."""
MAX_HASHED_IMAGES = 256
"""Of streamed images, evenly spaced ones are decoded and hashed."""


def compute_fingerprint(splits: DataSplits, names: Sequence[str] = ("train", "val", "test")) -> dict[str, str]:
    """Number of rows and checksum of the content of each split, such as `"898 rows, 0f3a..."`.

    Rows of large data are sampled: a change of single rows beyond 256 MiB, or of streamed images, may not show.
    """
    return {name: describe_split(getattr(splits, name)) for name in names}


def explain_change(stored: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """What differs between two fingerprints, in words; None if they are equal.

    >>> explain_change({"train": "10 rows, a", "test": "5 rows, b"}, {"train": "12 rows, c", "test": "5 rows, d"})
    'train has 12 rows instead of 10, and test has other values in its 5 rows'
    """
    changes = []
    for name in current:
        num_stored, num_current = (str(entry.get(name, "no")).split()[0] for entry in (stored, current))
        if num_stored != num_current:
            changes.append(f"{name} has {format_count(int(num_current), 'row')} instead of {num_stored}")
        elif stored.get(name) != current[name]:
            changes.append(f"{name} has other values in its {format_count(int(num_current), 'row')}")
    return ", and ".join(changes) or None


def describe_split(split: Split) -> str:
    """Number of rows and checksum of the content of a split; of large data, of a sample of their rows."""
    inputs = split.inputs
    if isinstance(inputs, LazyImages):
        inputs = inputs[_sample_rows(len(inputs), MAX_HASHED_IMAGES)]
    checksum = hashlib.sha256()
    if split.has_input_tree:
        # Names, and entries that are no tensors.
        checksum.update(repr(map_tensors(lambda tensor: tensor[:0], inputs)).encode())
    for tensor in (*flatten_tree(inputs, "inputs").values(), split.targets):
        checksum.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
        rows = _sample_rows(len(tensor), max(1, MAX_HASHED_BYTES // row_bytes))
        sample = tensor if len(rows) == len(tensor) else tensor[rows]
        checksum.update(sample.contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{len(split)} rows, {checksum.hexdigest()[:16]}"


def _sample_rows(count: int, limit: int) -> Tensor:
    return torch.arange(count) if count <= limit else torch.linspace(0, count - 1, limit).long()
