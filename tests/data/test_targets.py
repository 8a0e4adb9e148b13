import math

import numpy as np
import pytest
import torch

from flatbayes.data.targets import check_targets, holds_fractions


def test_fractions_tell_numbers_from_classes():
    assert holds_fractions(np.array([0.0, 0.5]), "y")
    with pytest.raises(ValueError, match="y holds whole numbers as float32: are they classes, or numbers to predict"):
        holds_fractions(np.array([0.0, 2.0], dtype=np.float32), "y")


def test_good_targets_pass():
    check_targets({"given": torch.tensor([1.0, 2.0]), "test": torch.tensor([3.0])}, ("y",))
    check_targets({"given": torch.tensor([[1.0, 2.0], [2.0, 3.0]])}, ("y", "z"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[1.0, 2.0], [1.0, math.nan]]), r"1 targets .* the first is nan in row 1 .*, target 'z'"),
        (torch.tensor([[1.0, 2.0], [3.0, 2.0]]), r"Target 'z' is 2 in all 2 given examples"),
        (torch.tensor([1.0, 2.0]), r"must be floating-point numbers, 2 for each example .*the shape \(2,\)"),
        (torch.tensor([[1, 2], [3, 4]]), "got torch.int64"),
    ],
)
def test_bad_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets({"given": targets}, ("y", "z"))
