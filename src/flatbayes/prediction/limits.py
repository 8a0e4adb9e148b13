"""Building what a stranger's file describes, without believing the sizes it states.

A network of a width of a billion is a short line of JSON. What is built from such a line may take no more memory, nor
more tensors, than the file has brought along, and is stopped at the first that would be too much.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EXTRA_ELEMENTS, EXTRA_TENSORS = 2**20, 1000
"""What anything may take on top, such as numbers that its constructor computes and forgets."""

SIZE_ARGUMENT_INDEX: dict[Any, int] = dict.fromkeys(
    (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full), 0
) | dict.fromkeys((Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full), 1)
"""What makes tensors of a size that is asked for, and where in its arguments the size begins."""


class AllocationLimit(TorchFunctionMode):
    """Inside, torch makes no more than a multiple of these numbers and tensors.

    Args:
        tensors: What the file holds.

    Raises:
        ValueError: More is asked for; nothing of that size was made.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.elements_left = 4 * sum(tensor.numel() for tensor in tensors.values()) + EXTRA_ELEMENTS
        self.tensors_left = 8 * len(tensors) + EXTRA_TENSORS

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count, refuse or go on."""
        if func in SIZE_ARGUMENT_INDEX:
            self.tensors_left -= 1
            self.elements_left -= count_elements(args[SIZE_ARGUMENT_INDEX[func] :], kwargs or {})
            if min(self.elements_left, self.tensors_left) < 0:
                raise ValueError("what it describes is larger than the tensors that it holds")
        return func(*args, **(kwargs or {}))


def count_elements(sizes: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many numbers a tensor would have.

    >>> count_elements((2, 3), {}), count_elements(((2, 3), 0.5), {}), count_elements((), {"size": (4,)})
    (6, 6, 4)

    Args:
        sizes: Positional arguments from the size on: numbers, or one sequence of them and then what is no size.
        kwargs: The others.
    """
    asked = kwargs.get("size", sizes)
    if asked and not isinstance(asked[0], int):
        asked = asked[0]
    return math.prod(size for size in asked if isinstance(size, int))


def check_max_integer(data: Any, maximum: int) -> None:
    """Refuse plain data with a whole number in it that is larger.

    Raises:
        ValueError: There is one.
    """
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            check_max_integer(item, maximum)
    elif isinstance(data, int) and abs(data) > maximum:
        raise ValueError("what it describes is larger than the tensors that it holds")
