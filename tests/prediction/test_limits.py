"""Resource limits for objects that are built from metadata."""

import pytest
import torch
from torch import nn

from flatbayes.prediction.limits import AllocationLimit, check_max_integer, count_elements


def test_allocations_are_limited():
    tensors = {"a": torch.zeros(10)}
    with AllocationLimit(tensors):
        torch.zeros(3, 4)
        nn.Linear(100, 100)
    for allocate in (
        lambda: torch.zeros(2**30),
        lambda: torch.empty((2**20, 2**20)),
        lambda: torch.full((2**30,), 0.0),
        lambda: torch.ones(size=(2**30,)),
        lambda: tensors["a"].new_zeros(2**15, 2**15),
        lambda: nn.Conv2d(10**5, 10**5, 3),
        lambda: [torch.zeros(1) for _ in range(10_000)],
    ):
        with pytest.raises(ValueError, match="larger than the tensors"), AllocationLimit(tensors):
            allocate()


def test_elements_are_counted_for_every_form_of_a_size():
    assert count_elements((), {}) == 1
    assert count_elements(((2, 3), 7.0), {}) == 6
    assert count_elements((2, 3), {}) == 6
    assert count_elements((), {"size": (2, 3)}) == 6
    assert count_elements((torch.Size([4, 5]),), {}) == 20


def test_integers_of_plain_data_are_limited():
    check_max_integer({"a": [1, {"b": 5, "c": "text", "d": 1e9}]}, 5)
    with pytest.raises(ValueError, match="larger than the tensors"):
        check_max_integer({"a": [1, {"b": -6}]}, 5)
