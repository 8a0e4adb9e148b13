import pytest
import torch

from flatbayes.data.checks import check_finite, check_labels, check_same_length, make_class_names

INF = float("inf")


def test_good_examples_pass():
    check_labels({"given": torch.tensor([0, 1]), "test": torch.tensor([2])}, ("a", "b", "c"))
    check_finite(torch.zeros(3, 2), "examples", ("a", "b"))
    check_finite(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "images")
    check_same_length("given", 3, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_located(label):
    with pytest.raises(ValueError, match=f"1 labels of the test examples .* 0 to 2.* is {label} in row 1"):
        check_labels({"given": torch.tensor([0, 1, 2]), "test": torch.tensor([0, label])}, ("a", "b", "c"))


def test_a_class_without_examples_is_named():
    with pytest.raises(ValueError, match="1 of the 3 classes have no example; the first is 'b'"):
        check_labels({"given": torch.tensor([0, 2])}, ("a", "b", "c"))


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_one_class_is_not_a_task(names):
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


def test_every_input_has_a_label():
    with pytest.raises(ValueError, match="3 inputs and 4 labels"):
        check_same_length("given", 3, 4)


def test_numbers_name_classes():
    assert make_class_names([torch.tensor([0, 2, 1]), torch.tensor([1])]) == ("0", "1", "2")
    assert make_class_names([torch.tensor([], dtype=torch.int64)]) == ()


def test_an_identifier_is_not_a_label():
    with pytest.raises(ValueError, match="highest label is 1000000000000, and there are only 2 examples"):
        make_class_names([torch.tensor([0, 10**12])])
