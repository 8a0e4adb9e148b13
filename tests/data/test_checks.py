import math

import numpy as np
import pytest
import torch

from flatbayes.data.checks import check_finite, check_labels, check_targets, holds_fractions, make_class_names

INF = float("inf")


def test_valid_examples_pass():
    check_labels({"given": torch.tensor([0, 1]), "test": torch.tensor([2])}, ("a", "b", "c"))
    check_finite(torch.zeros(3, 2), "examples", ("a", "b"))
    check_finite(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "images")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_located(label):
    with pytest.raises(ValueError, match=f"1 labels of the test examples .* 0 to 2.* is {label} in row 1"):
        check_labels({"given": torch.tensor([0, 1, 2]), "test": torch.tensor([0, label])}, ("a", "b", "c"))


def test_a_class_without_examples_is_named():
    with pytest.raises(ValueError, match="1 of the 3 classes have no example; the first is 'b'"):
        check_labels({"given": torch.tensor([0, 2])}, ("a", "b", "c"))


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_a_single_class_is_refused(names):
    with pytest.raises(ValueError, match=f"at least 2 classes, got {len(names)}"):
        check_labels({"given": torch.zeros(4, dtype=torch.int64)}, names)


@pytest.mark.parametrize("value", [float("nan"), INF, -INF])
def test_the_first_value_that_is_not_finite_is_located(value):
    inputs = torch.zeros(10_000, 2)
    inputs[[5000, 9000], 1] = value
    with pytest.raises(ValueError, match=r"The examples hold 2 values .* row 5000 .* feature 'b'"):
        check_finite(inputs, "examples", ("a", "b"))
    with pytest.raises(ValueError, match=r"row 6000 .* feature 1"):
        check_finite(inputs, "examples", first_row=1000)


def test_a_pixel_that_is_not_finite_is_located():
    images = torch.zeros(4, 3, 5, 5)
    images[2, 1, 3, 4] = INF
    with pytest.raises(ValueError, match=r"1 values .* inf in row 2 .* pixel \(1, 3, 4\)"):
        check_finite(images, "images")


def test_class_names_are_numbers():
    assert make_class_names([torch.tensor([0, 2, 1]), torch.tensor([1])]) == ("0", "1", "2")
    assert make_class_names([torch.tensor([], dtype=torch.int64)]) == ()


def test_labels_with_large_gaps_are_refused():
    with pytest.raises(ValueError, match="highest label is 1000000000000, and there are only 2 examples"):
        make_class_names([torch.tensor([0, 10**12])])


def test_fractions_are_regression_targets():
    assert holds_fractions(np.array([0.0, 0.5]), "y")
    with pytest.raises(ValueError, match="y holds whole numbers as float32: are they classes, or numbers to predict"):
        holds_fractions(np.array([0.0, 2.0], dtype=np.float32), "y")


def test_valid_targets_pass():
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
def test_invalid_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets({"given": targets}, ("y", "z"))
