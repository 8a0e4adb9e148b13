"""Device and precision of forward passes in predictions."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flatbayes.core.accelerators import get_free_memory
from flatbayes.core.devices import is_accelerator
from flatbayes.core.input_trees import ModelInputs, flatten_tree, map_tensors

PredictionPrecision = Literal["training", "bf16-mixed", "16-mixed"]
"""Precision of forward passes: that of the training, or automatic mixed precision with bfloat16 or float16."""
AUTOCAST_DTYPES: dict[object, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MAX_PLACED_FRACTION = 0.1
"""Fraction of a device's free memory that inputs may take to be copied there once instead of for every draw."""


def resolve_autocast_dtype(
    precision: PredictionPrecision | None, info: Mapping[str, Any], network_dtype: torch.dtype | None
) -> torch.dtype | None:
    """The dtype of autocast for a precision of `predict`; None for the precision of the weights.

    Args:
        precision: The precision that is asked for.
        info: Metadata of the posterior, with the `precision` of its training.
        network_dtype: Precision of the weights; None if they have several.

    Raises:
        ValueError: The precision is unknown, or the networks cannot be run in it.
    """
    if precision is not None and precision not in get_args(PredictionPrecision):
        names = ", ".join(get_args(PredictionPrecision))
        raise ValueError(f"precision must be None or one of {names}; got {precision!r}.")
    dtype = AUTOCAST_DTYPES.get(info.get("precision") if precision == "training" else precision)
    if dtype is not None and network_dtype != torch.float32:
        weights = "of several dtypes" if network_dtype is None else str(network_dtype).removeprefix("torch.")
        raise ValueError(
            f"precision={precision!r} is for networks of float32, and the weights are {weights}: leave out precision."
        )
    return dtype


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Context of autocast to a dtype; None for no autocast."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def place_batches(batches: Sequence[ModelInputs], device: torch.device) -> list[Any]:
    """Batches of raw inputs on a device, if they take little of its memory; otherwise as they are.

    Every draw reads them again, and a copy to an accelerator takes as long as a pass of a small network. Features in
    float64 stay, since they are standardized first, and not all devices have float64.
    """
    num_bytes = sum(tensor.nbytes for batch in batches for tensor in flatten_tree(batch, "inputs").values())
    if not is_accelerator(device) or num_bytes > MAX_PLACED_FRACTION * get_free_memory(device):
        return list(batches)

    def place(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(device, non_blocking=True)

    return [map_tensors(place, batch) for batch in batches]
