import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from flatbayes.data import ImageFolder, Npz, Table, TorchDataset, make_source
from flatbayes.data.checks import check_finite, check_fractions, check_labels, check_targets, make_class_names

INF = float("inf")


def test_valid_examples_pass():
    check_labels({"given": torch.tensor([0, 1]), "test": torch.tensor([2])}, ("a", "b", "c"))
    check_finite(torch.zeros(3, 2), "examples", ("a", "b"))
    check_finite(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "images")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_located(label):
    with pytest.raises(ValueError, match=f"1 label of the test examples is .* 0 to 2.* is {label} in row 1"):
        check_labels({"given": torch.tensor([0, 1, 2]), "test": torch.tensor([0, label])}, ("a", "b", "c"))


def test_a_class_without_examples_is_named():
    with pytest.raises(ValueError, match="1 of the 3 classes has no example; the first is 'b'"):
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
    with pytest.raises(ValueError, match=r"1 value .* inf in row 2 .* pixel \(1, 3, 4\)"):
        check_finite(images, "images")


def test_class_names_are_numbers():
    assert make_class_names([torch.tensor([0, 2, 1]), torch.tensor([1])]) == ("0", "1", "2")
    assert make_class_names([torch.tensor([], dtype=torch.int64)]) == ()


def test_labels_with_large_gaps_are_refused():
    with pytest.raises(ValueError, match="highest label is 1000000000000, and there are only 2 examples"):
        make_class_names([torch.tensor([0, 10**12])])


def test_fractions_are_regression_targets():
    check_fractions(np.array([0.0, 0.5]), "y")
    with pytest.raises(ValueError, match="y: whole numbers as float32, which may be classes or numbers"):
        check_fractions(np.array([0.0, 2.0], dtype=np.float32), "y")


def test_valid_targets_pass():
    check_targets({"given": torch.tensor([1.0, 2.0]), "test": torch.tensor([3.0])}, ("y",))
    check_targets({"given": torch.tensor([[1.0, 2.0], [2.0, 3.0]])}, ("y", "z"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[1.0, 2.0], [1.0, math.nan]]), r"1 target .* the first is nan in row 1 .*, target 'z'"),
        (torch.tensor([[1.0, 2.0], [3.0, 2.0]]), r"Target 'z' is 2 in all 2 given examples"),
        (torch.tensor([1.0, 2.0]), r"must be floating-point numbers, 2 for each example .*the shape \(2,\)"),
        (torch.tensor([[1, 2], [3, 4]]), "got torch.int64"),
    ],
)
def test_invalid_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets({"given": targets}, ("y", "z"))


@pytest.fixture(params=["csv", "parquet", "npz", "torch", "images"])
def make_classes(request, tmp_path, png, pixels):
    """A source of each kind whose labels are these whole numbers."""

    def make(labels, **options):
        inputs = np.random.default_rng(0).normal(size=(len(labels), 2))
        match request.param:
            case "csv" | "parquet":
                path = tmp_path / f"t.{request.param}"
                frame = pd.DataFrame({"a": inputs[:, 0], "b": inputs[:, 1], "y": labels})
                frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path)
                return Table(path=str(path), target="y", **options)
            case "npz":
                np.savez(tmp_path / "t.npz", x=inputs, y=np.unique(labels, return_inverse=True)[1])
                return Npz(path=str(tmp_path / "t.npz"), **options)
            case "torch":
                targets = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
                return TorchDataset(TensorDataset(torch.from_numpy(inputs), targets), **options)
            case "images":
                for index, label in enumerate(labels):
                    (tmp_path / str(label)).mkdir(exist_ok=True)
                    (tmp_path / str(label) / f"{index}.png").write_bytes(png(pixels(1)[0]))
                return ImageFolder(path=str(tmp_path))

    make.has_task = request.param != "images"
    return make


def test_numbers_to_predict_are_no_classes(make_classes):
    labels = [7 * row + 1000 for row in range(20)]
    message = r"The 20 examples have 20 classes, and 20 of these have a single .* say task=regression"
    with pytest.raises(ValueError, match=message):
        make_classes(labels).load(0)
    if make_classes.has_task:
        assert make_classes(labels, task="regression").load(0).is_regression
        with pytest.warns(UserWarning, match="20 of the 20 classes have a single example"):
            assert make_classes(labels, task="classification").load(0).num_classes == 20


def test_a_class_of_one_example_is_named(make_classes):
    with pytest.warns(UserWarning, match=r"1 of the 3 classes has a single example, .*: '[02]'"):
        assert make_classes([1] * 10 + [2] * 10 + [0]).load(0).num_classes == 3


def test_words_that_identify_examples_are_no_classes():
    names = tuple(f"patient{k}" for k in range(20))
    with pytest.raises(ValueError, match="such as 'patient0', 'patient1', 'patient2'. If they identify the examples"):
        check_labels({"given": torch.arange(20)}, names)


@pytest.mark.parametrize("names", [("Yes", "yes"), ("no", "no ")])
def test_classes_that_differ_in_case_or_spaces_are_named(names):
    with pytest.warns(UserWarning, match=f"'{names[0]}', '{names[1]}'. If they are one class"):
        check_labels({"given": torch.arange(20) % 2}, names)


@pytest.mark.parametrize("write", ["npz", "parquet"])
def test_labels_beyond_int64_are_refused(tmp_path, write):
    labels = np.array([0, 1, 2**64 - 1], np.uint64)
    path = tmp_path / f"a.{write}"
    if write == "npz":
        np.savez(path, x=np.zeros((3, 2)), y=labels)
    else:
        pq.write_table(pa.table({"img": [b"a"] * 3, "label": labels}), path)
    source = make_source(str(path))
    with pytest.raises(ValueError, match="the label 18446744073709551615, which is beyond int64"):
        source.load(0)
