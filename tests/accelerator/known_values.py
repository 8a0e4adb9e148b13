"""Values of tensors on the pretend device, where they are known: counters, constants, and checks for NaN."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
"""Name of the device."""


def is_on_device(value: Any) -> bool:
    """Whether this is a tensor on the device."""
    return isinstance(value, Tensor) and value.device.type == NAME


def make_values(tensor: Tensor) -> Tensor:
    """What the host reads of a tensor: its values if they are known.

    Else True; positive numbers, that differ, of a vector; log probabilities, which are equal, of a matrix; and small
    numbers of a larger tensor, such as the weights of a convolution.
    """
    values: Tensor | None = getattr(tensor, "known_values", None)
    if values is not None:
        return values.clone()
    if not tensor.dtype.is_floating_point:
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    if tensor.ndim > 2:
        return torch.full(tensor.shape, 1e-3, dtype=tensor.dtype)
    if tensor.ndim == 2:
        return torch.full(tensor.shape, -math.log(max(1, tensor.shape[-1])), dtype=tensor.dtype)
    return torch.linspace(0.5, 1.5, tensor.numel()).reshape(tensor.shape).to(tensor.dtype)


def propagate_values(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Keep the values of a result on the device where they are known.

    They are known of constants of one element, of comparisons that come out the same for all finite numbers, and of
    what is computed from known values alone.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its arguments by name.
        result: Its result.
    """
    name = func._schema.name.split("::")[1]
    if name.startswith("_foreach") and name.endswith("_"):
        for tensor in args[0]:
            _forget_values(tensor)
        return
    if not is_on_device(result):
        return
    for_finite = _compare_finite(name, args)
    if for_finite is not None:
        result.known_values = torch.tensor(for_finite).expand(result.shape)
        return
    if name.startswith("set_") or not _are_known(func, args, kwargs, result):
        _forget_values(result)  # it may be an argument that was changed in place
        return
    args, kwargs = tree_map(lambda leaf: leaf.known_values if is_on_device(leaf) else leaf, (args, kwargs))
    values = func(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {}))
    result.known_values = values.clone() if name == "_to_copy" else values


def _compare_finite(name: str, args: Any) -> bool | None:
    """The result of a comparison that is the same for all finite numbers; None for other operations."""
    if name in ("isfinite", "isnan", "isinf"):
        return name == "isfinite"
    if name in ("eq", "ne"):
        is_infinity = isinstance(args[1], float) and math.isinf(args[1])
        if args[0] is args[1] or is_infinity:
            return (name == "eq") != is_infinity
    return None


def _are_known(func: Any, args: Any, kwargs: Any, result: Tensor) -> bool:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not sources:
        return result.numel() <= 1
    return all(hasattr(tensor, "known_values") if is_on_device(tensor) else tensor.numel() <= 1 for tensor in sources)


def _forget_values(tensor: Tensor) -> None:
    if hasattr(tensor, "known_values"):
        del tensor.known_values
