"""Device and precision of forward passes in predictions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from flatbayes.core.accelerators import get_free_memory
from flatbayes.core.devices import is_accelerator
from flatbayes.core.input_trees import ModelInputs, count_examples, flatten_tree, map_tensors
from flatbayes.core.randomness import RandomState

PredictionPrecision = Literal["training", "bf16-mixed", "16-mixed"]
"""Precision of forward passes: that of the training, or automatic mixed precision with bfloat16 or float16."""
AUTOCAST_DTYPES: dict[object, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MAX_PLACED_FRACTION = 0.1
"""Fraction of a device's free memory that inputs may take to be copied there once instead of for every draw."""
MAX_PREPROCESSED_BYTES = 2**28
"""Largest memory of preprocessed inputs that are kept for the next network (256 MiB); beyond it they are preprocessed
for each network."""

Result = TypeVar("Result")


class PreprocessedBatches:
    """Batches of inputs for several networks, which are preprocessed once for all of them.

    A batch is preprocessed again for each network if a network changes its input in place, so that each sees the
    original; if preprocessing draws random numbers; and beyond `MAX_PREPROCESSED_BYTES`.
    """

    def __init__(
        self, batches: Sequence[ModelInputs], preprocess: Callable[[ModelInputs], Any], num_networks: int
    ) -> None:
        self._batches, self._preprocess = batches, preprocess
        self.num_examples = sum(map(count_examples, batches))
        self._bytes_left = MAX_PREPROCESSED_BYTES if num_networks > 1 else 0
        self._kept = dict[int, Any]()
        self._changed = set[int]()

    def map(self, function: Callable[[Any], Result]) -> Iterator[Result]:
        """Yield the result of a function, such as a network, for each preprocessed batch, which it may change."""
        for k, batch in enumerate(self._batches):
            inputs, reusable = self._kept.get(k), None
            if inputs is None:
                inputs, reusable = self._prepare(batch)
            versions = _read_versions(inputs)
            result = function(inputs)
            if versions is None or _read_versions(inputs) != versions:
                self._kept.pop(k, None)
                self._changed.add(k)
            elif reusable is not None and k not in self._changed:
                self._keep(k, batch, reusable)
            yield result

    def _prepare(self, batch: ModelInputs) -> tuple[Any, Any]:
        """Inputs that may be changed, and the same values for another network if it may have them."""
        before = RandomState.capture_devices(())
        inputs = self._preprocess(batch)
        if _share_memory(inputs, batch):
            return map_tensors(Tensor.clone, inputs), inputs
        return inputs, inputs if before.equals(RandomState.capture_devices(())) else None

    def _keep(self, k: int, batch: ModelInputs, inputs: Any) -> None:
        num_bytes = 0 if _share_memory(inputs, batch) else count_bytes(inputs)
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._kept[k] = inputs


def _list_tensors(inputs: Any) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(flatten_tree(inputs, "inputs").values())


def count_bytes(inputs: Any) -> int:
    """Memory of the inputs of a batch."""
    return sum(tensor.nbytes for tensor in _list_tensors(inputs))


def _share_memory(inputs: Any, batch: ModelInputs) -> bool:
    addresses = {tensor.untyped_storage().data_ptr() for tensor in _list_tensors(batch)}
    return any(tensor.untyped_storage().data_ptr() in addresses for tensor in _list_tensors(inputs))


def _read_versions(inputs: Any) -> list[int] | None:
    """Number of in-place writes to each tensor; None if they are not counted."""
    tensors = _list_tensors(inputs)
    return None if any(tensor.is_inference() for tensor in tensors) else [tensor._version for tensor in tensors]


def resolve_autocast_dtype(
    precision: PredictionPrecision | None, info: Mapping[str, Any], network_dtype: torch.dtype | None
) -> torch.dtype | None:
    """The dtype of autocast for a precision of `predict`; None for the precision of the weights.

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
    if not is_accelerator(device) or sum(map(count_bytes, batches)) > MAX_PLACED_FRACTION * get_free_memory(device):
        return list(batches)

    def place(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(device, non_blocking=True)

    return [map_tensors(place, batch) for batch in batches]
