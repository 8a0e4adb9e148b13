"""Resource limits for objects that are built from untrusted metadata.

One line of JSON can describe a network with a billion units. While such a description is instantiated, torch may
allocate no more elements and tensors than a multiple of those in the artefact, and stops before the first excess.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EXTRA_ELEMENTS, EXTRA_TENSORS = 2**20, 1000
"""Allowance on top of the multiple, for temporary tensors of a constructor."""

TOO_LARGE = "the described object is larger than the tensors in the file"

SIZE_ARGUMENT_INDEX: dict[Any, int] = dict.fromkeys(
    (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full), 0
) | dict.fromkeys((Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full), 1)
"""Functions that allocate a tensor of a given size, with the position of the size among their arguments."""


class AllocationLimit(TorchFunctionMode):
    """Context in which torch allocates at most a multiple of the elements and tensors of a file.

    Raises:
        ValueError: More is requested; the allocation is not made.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.elements_left = 4 * sum(tensor.numel() for tensor in tensors.values()) + EXTRA_ELEMENTS
        self.tensors_left = 8 * len(tensors) + EXTRA_TENSORS

    def __torch_function__(  # torch fixes this signature
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the allocations of a call, and call the function if they are within the limit."""
        if func in SIZE_ARGUMENT_INDEX:
            self.tensors_left -= 1
            self.elements_left -= count_elements(args[SIZE_ARGUMENT_INDEX[func] :], kwargs or {})
            if min(self.elements_left, self.tensors_left) < 0:
                raise ValueError(TOO_LARGE)
        return func(*args, **(kwargs or {}))


def count_elements(sizes: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Number of elements of the tensor that a call would allocate.

    `sizes` are the positional arguments from the size on: integers, or one sequence of them followed by other
    arguments.

    >>> count_elements((2, 3), {}), count_elements(((2, 3), 0.5), {}), count_elements((), {"size": (4,)})
    (6, 6, 4)
    """
    size = kwargs.get("size", sizes)
    if size and not isinstance(size[0], int):
        size = size[0]
    return math.prod(length for length in size if isinstance(length, int))


def check_max_integer(data: object, maximum: int) -> None:
    """Check that no integer in nested dictionaries and lists exceeds a maximum in absolute value.

    The label of unlabelled examples, `ignore_index`, is no size.
    """
    if isinstance(data, dict):
        data = [value for key, value in data.items() if key != "ignore_index"]
    if isinstance(data, list):
        for item in data:
            check_max_integer(item, maximum)
    elif isinstance(data, int) and abs(data) > maximum:
        raise ValueError(TOO_LARGE)
