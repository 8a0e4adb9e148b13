"""Bounded storage for snapshots of a Markov chain, evenly spaced over all collected iterates (thinning).

The number of snapshots to come is unknown, so the spacing doubles whenever the storage is full. The memory is that of
`max_snapshots` networks, and at least half of the rows are in use once that many snapshots have been collected.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import trainable_parameters

Storage = Literal["device", "cpu"]
"""Where snapshots are stored: on the device of the model, or in main memory."""


def select_snapshot_indices(count: int, max_snapshots: int) -> range:
    """Return which of `count` snapshots, counted from 1, are stored: multiples of the smallest fitting power of 2.

    With multiples, thinning drops the beginning of the chain rather than its end.

    >>> [list(select_snapshot_indices(count, 4)) for count in (0, 3, 4, 5, 6, 8, 11)]
    [[], [1, 2, 3], [1, 2, 3, 4], [2, 4], [2, 4, 6], [2, 4, 6, 8], [4, 8]]
    """
    stride = 1
    while count // stride > max_snapshots:
        stride *= 2
    return range(stride, count + 1, stride)


def allocate_snapshots(model: nn.Module, max_snapshots: int, storage: Storage) -> dict[str, Tensor]:
    """Return empty statistics with one row of all trainable weights per snapshot, and a counter."""
    check_materialized(model)
    check_real(model.named_parameters(), "a sampler")
    params = flatten(trainable_parameters(model))
    device = get_storage_device(storage, params.device)
    return {
        "count": torch.zeros((), dtype=torch.int64, device="cpu"),  # read without waiting for a device
        "snapshots": torch.zeros(max_snapshots, params.numel(), dtype=params.dtype, device=device),
    }


def list_cpu_statistics(storage: Storage, stored: str = "snapshots") -> frozenset[str]:
    """Names of the statistics that are in main memory on whatever device the model is."""
    return frozenset(["count", *([stored] if storage == "cpu" else ())])


def add_snapshot(statistics: dict[str, Tensor], params: Sequence[Tensor]) -> None:
    """Count the current weights, and store them if their index is selected, in the result of `allocate_snapshots`."""
    count = int(statistics["count"]) + 1
    store_snapshot(statistics["snapshots"], count, params)
    statistics["count"].fill_(count)


def store_snapshot(rows: Tensor, count: int, params: Sequence[Tensor]) -> None:
    """Store the weights of snapshot number `count`, from 1 on, if it is selected; earlier ones are thinned."""
    row = select_row(rows, count)
    if row is not None:
        torch._foreach_copy_(unflatten(row, params), [param.detach() for param in params])


def select_row(rows: Tensor, count: int) -> Tensor | None:
    """The row for snapshot number `count`, from 1 on, once earlier ones are thinned in place; None if it has none."""
    previous = select_snapshot_indices(count - 1, len(rows))
    selected = select_snapshot_indices(count, len(rows))
    if selected.step > previous.step:
        for row in range(len(rows) // 2):  # in ascending order: every source row is above its target
            rows[row].copy_(rows[2 * row + 1])
    return rows[len(selected) - 1] if count in selected else None


def draw_snapshot_index(num_stored: int, generator: torch.Generator, method: str) -> int:
    """Return the number of a snapshot, drawn uniformly.

    Raises:
        RuntimeError: No snapshot was collected.
    """
    if not num_stored:
        raise RuntimeError(
            f"{method} needs at least 1 collected snapshot before a draw, got 0; lower collection.start_fraction or "
            "train longer."
        )
    return int(torch.multinomial(torch.ones(num_stored, device=generator.device), 1, generator=generator).item())


def count_stored_snapshots(state: State) -> int:
    """Number of snapshots in a storage."""
    return len(select_snapshot_indices(int(state.statistics["count"]), len(state.statistics["snapshots"])))


def check_snapshot_options(max_snapshots: int, storage: Storage) -> None:
    """Validate the options of a snapshot storage."""
    if max_snapshots < 1:
        raise ValueError(f"max_snapshots is the largest number of stored snapshots: at least 1, got {max_snapshots}.")
    check_storage_device(storage)


def get_storage_device(storage: Storage, model_device: torch.device) -> torch.device:
    """Return the device of a storage for a model on `model_device`."""
    return torch.device("cpu") if storage == "cpu" else model_device


def check_storage_device(storage: Storage) -> None:
    """Validate a storage."""
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {', '.join(get_args(Storage))}; got {storage!r}.")
