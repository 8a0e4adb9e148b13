"""Snapshots of a chain: a bounded number, evenly spread over all iterates that were collected.

How many there will be is not known while they come, so the spacing doubles whenever there is no more room: the
memory is that of `max_snapshots` networks, and always at least half of it is in use once that many were collected.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.weights import flatten, swap_values, trainable_parameters, unflatten

Storage = Literal["device", "cpu"]
"""Where snapshots are held: beside the model, or in main memory."""


def select_snapshot_indices(count: int, max_snapshots: int) -> range:
    """Which of `count` snapshots, counted from 1, are held: the multiples of the smallest fitting power of two.

    Multiples leave out the beginning of the chain rather than its end.

    >>> [list(select_snapshot_indices(count, 4)) for count in (0, 3, 4, 5, 6, 8, 11)]
    [[], [1, 2, 3], [1, 2, 3, 4], [2, 4], [2, 4, 6], [2, 4, 6, 8], [4, 8]]

    Args:
        count: Snapshots collected so far.
        max_snapshots: Largest number to hold.
    """
    stride = 1
    while count // stride > max_snapshots:
        stride *= 2
    return range(stride, count + 1, stride)


def allocate_snapshots(model: nn.Module, max_snapshots: int, storage: Storage) -> dict[str, Tensor]:
    """Statistics with room for `max_snapshots` snapshots of all trainable weights, a row each, and none yet."""
    params = flatten(trainable_parameters(model))
    device = get_storage_device(storage, params.device)
    return {
        "count": torch.zeros((), dtype=torch.int64, device=device),
        "snapshots": torch.zeros(max_snapshots, params.numel(), dtype=params.dtype, device=device),
    }


def add_snapshot(statistics: dict[str, Tensor], params: Sequence[Tensor]) -> None:
    """Count the current weights, and hold them if it is their turn; in place.

    Args:
        statistics: What `allocate_snapshots` made.
        params: The current weights.
    """
    rows, count = statistics["snapshots"], int(statistics["count"]) + 1
    statistics["count"].fill_(count)
    before, now = select_snapshot_indices(count - 1, len(rows)), select_snapshot_indices(count, len(rows))
    if now.step > before.step:
        for row in range(len(rows) // 2):  # upwards, since each comes from further up
            rows[row].copy_(rows[2 * row + 1])
    if count in now:
        torch._foreach_copy_(unflatten(rows[len(now) - 1], params), [param.detach() for param in params])


@contextmanager
def draw_snapshot(state: State, generator: torch.Generator, method: str) -> Iterator[nn.Module]:
    """The model in eval mode with the weights of one snapshot, each as likely as the others.

    Args:
        state: Its statistics include those of `allocate_snapshots`.
        generator: Chooses the snapshot.
        method: Whose draw this is, for the message.

    Raises:
        RuntimeError: No snapshot was collected.
    """
    params, rows = trainable_parameters(state.model), state.statistics["snapshots"]
    held = len(select_snapshot_indices(int(state.statistics["count"]), len(rows)))
    if not held:
        raise RuntimeError(
            f"{method} needs at least 1 collected snapshot before a draw, got 0; lower collection.start_fraction or train longer."
        )
    row = torch.multinomial(torch.ones(held, device=generator.device), 1, generator=generator).item()
    with swap_values(params, unflatten(rows[int(row)], params)), eval_mode(state.model):
        yield state.model


def check_snapshot_options(max_snapshots: int, storage: Storage) -> None:
    """Refuse room for nothing, and places that there are not.

    Raises:
        ValueError: `max_snapshots` is below 1, or `storage` is not known.
    """
    if max_snapshots < 1:
        raise ValueError(
            f"max_snapshots is the largest number of snapshots to hold: it must be at least 1, got {max_snapshots}."
        )
    check_storage_device(storage)


def get_storage_device(storage: Storage, model_device: torch.device) -> torch.device:
    """The device that a storage names, for a model on `beside`."""
    return torch.device("cpu") if storage == "cpu" else model_device


def check_storage_device(storage: Storage) -> None:
    """Refuse places that there are not.

    Raises:
        ValueError: `storage` is not known.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {', '.join(get_args(Storage))}; got {storage!r}.")
