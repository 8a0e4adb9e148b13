"""Pairs of inputs and targets: rows that belong together, lists, and targets that are none."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn

from flatbayes import MAP, compare, evaluate, fit
from flatbayes.data import Arrays, DataWarning, is_array_pair
from flatbayes.data.pairs import check_pair, check_row_labels

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
LABELS = pd.Series(["x", "y", "z"] * 20)


@pytest.mark.parametrize(
    "inputs", [FRAME, FRAME.to_numpy(), torch.tensor(FRAME.to_numpy())], ids=["frame", "array", "tensor"]
)
@pytest.mark.parametrize(
    "convert", [list, tuple, np.asarray, pd.Series, pd.Index, pd.Categorical], ids=lambda f: f.__name__
)
def test_targets_may_be_of_any_kind(inputs, convert):
    targets = convert(LABELS)
    assert is_array_pair((inputs, targets))
    splits = Arrays(inputs, targets).load(0)
    assert splits.class_names == ("x", "y", "z")
    assert torch.equal(splits.train.targets, Arrays(inputs, LABELS.to_numpy()).load(0).train.targets)


@pytest.mark.parametrize(
    "targets",
    ["label", 3, None, {0: "x"}, iter("xy"), dict(enumerate("xy")).values()],
    ids=lambda targets: type(targets).__name__,
)
def test_targets_of_another_kind_are_refused(targets):
    assert is_array_pair((FRAME, targets))
    with pytest.raises(TypeError, match="one target for each example, got a "):
        check_pair(FRAME, targets, "given examples")


def test_the_name_of_a_column_is_no_target():
    with pytest.raises(TypeError, match=r"Separate the column: \(frame.drop\(columns='b'\), frame\['b'\]\)"):
        check_pair(FRAME, "b", "given examples")


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_sparse_examples_are_refused(name):
    values = {"inputs": FRAME, "targets": LABELS} | {name: sparse.csr_matrix(np.eye(60))}
    with pytest.raises(TypeError, match=f"The {name} of the given examples are sparse, a csr_matrix"):
        Arrays(values["inputs"], values["targets"]).load(0)


def test_equal_row_labels_say_nothing():
    for inputs, targets in [(FRAME, LABELS), (FRAME.sample(frac=1, random_state=0), LABELS.to_numpy())]:
        check_pair(inputs, targets, "given examples")
    check_pair(FRAME, LABELS.iloc[:50], "given examples")  # another message says that the lengths differ
    moved = FRAME.set_index(np.arange(60) + 5)
    check_pair(moved, LABELS.set_axis(moved.index), "given examples")


def test_row_labels_in_another_order_are_refused():
    shuffled = LABELS.sample(frac=1, random_state=0)
    message = r"same row labels \(index\) in another order: row 0 \(counted from 0\) is 0 in inputs and .* in targets"
    with pytest.raises(ValueError, match=message):
        check_pair(FRAME, shuffled, "given examples")
    check_pair(FRAME, shuffled.loc[FRAME.index], "given examples")


@pytest.mark.parametrize(
    "index",
    [np.arange(60) + 1, list("ab") * 30, pd.MultiIndex.from_product([range(6), range(10)])],
    ids=["moved", "texts", "several levels"],
)
def test_other_row_labels_are_noted(index):
    with pytest.warns(DataWarning, match=r"^X and y have different row labels .* matched by their position"):
        check_row_labels(FRAME, LABELS.set_axis(index), "X", "y")


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, "", "NA", "nan"], ids=repr)
@pytest.mark.parametrize("split", ["given", "validation", "test"])
def test_missing_labels_are_refused(value, split):
    labels = LABELS.astype(object)
    labels[5] = value
    given = {"validation": "val", "test": "test"}
    source = Arrays(FRAME, labels) if split == "given" else Arrays(FRAME, LABELS, **{given[split]: (FRAME, labels)})
    with pytest.raises(ValueError, match=f"targets of the {split} examples: 1 of 60 labels is missing, .* in row 5 "):
        source.load(0)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "string", "category", float])
def test_missing_labels_of_every_type_are_refused(dtype):
    values = pd.Series([0, 1] * 30).astype("string" if dtype == "string" else dtype).mask(np.arange(60) == 7)
    with pytest.raises(ValueError, match="missing, the first .*in row 7 "):
        Arrays(FRAME, values).load(0)


@pytest.mark.parametrize("word", ["None", "?"])
def test_a_class_that_marks_missing_labels_is_noted(word):
    with pytest.warns(DataWarning, match=f"'{re.escape(word)}' is a class"):
        Arrays(FRAME, LABELS.replace("z", word)).load(0)


def test_objects_that_are_fractions_are_a_regression():
    prices = FRAME["a"].astype(object)
    assert torch.equal(Arrays(FRAME, prices).load(0).train.targets, Arrays(FRAME, FRAME["a"]).load(0).train.targets)
    prices[3] = None
    with pytest.raises(ValueError, match="1 target that is missing or not finite; the first is nan in row 3"):
        Arrays(FRAME, prices).load(0)
    assert Arrays(FRAME, pd.Series([1, 2] * 30, dtype=object)).load(0).class_names == ("1", "2")


def test_inputs_that_are_objects_or_masked():
    expected = Arrays(FRAME, LABELS).load(0).train.input_tensor
    for inputs in (FRAME.astype(object), FRAME.to_numpy().astype(object), FRAME.to_numpy().astype(">f8")):
        assert torch.equal(Arrays(inputs, LABELS).load(0).train.input_tensor, expected)
    masked = np.ma.masked_array(FRAME.to_numpy(), mask=np.arange(120).reshape(60, 2) == 7)
    with pytest.raises(ValueError, match="1 value that is missing or not finite; the first is nan in row 3"):
        Arrays(masked, LABELS).load(0)
    with pytest.raises(ValueError, match=r"For one feature, give it a second axis: values\[:, None\]"):
        Arrays(FRAME["a"], LABELS).load(0)


def test_a_list_of_one_tensor_for_each_example_is_an_array():
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 2
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    expected = fit(network, (images, labels), MAP(), config={"epochs": 1})
    for rows in (list(images), tuple(images), [image.numpy() for image in images]):
        for targets in (labels, labels.tolist(), labels.numpy()):
            fitted = fit(network, (rows, targets), MAP(), config={"epochs": 1}, val=(rows, targets))
            assert torch.equal(fitted.predict(images).mean, expected.predict(images).mean)
            assert evaluate(fitted, (rows, targets)).metrics == evaluate(expected, (images, labels)).metrics
    compare(network, (list(images), labels.tolist()), [MAP()], num_seeds=2, config={"epochs": 1})
    with pytest.raises(ValueError, match=r"one tensor for each example, of several shapes, such as \(3, 4, 4\)"):
        fit(network, ([*images[:11], images[11, :2]], labels), MAP(), config={"epochs": 1})


def test_nested_lists_are_arrays():
    rows, targets = FRAME.to_numpy().tolist(), LABELS.tolist()
    network = nn.Linear(2, 3)
    fitted = fit(network, (rows, targets), MAP(), config={"epochs": 1}, val=(rows, targets))
    expected = fit(network, (FRAME.to_numpy(), targets), MAP(), config={"epochs": 1})
    assert torch.equal(fitted.predict(FRAME.to_numpy()).mean, expected.predict(FRAME.to_numpy()).mean)
    assert evaluate(fitted, (rows, targets)).metrics == evaluate(expected, (FRAME.to_numpy(), targets)).metrics


def test_a_list_of_examples_to_predict_is_told_to_be_stacked():
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    fitted = fit(network, (images, torch.arange(12) % 2), MAP(), config={"epochs": 1})
    with pytest.raises(ValueError, match=r"got the shape \(3, 4, 4\): .* pass torch.stack\(list\)"):
        fitted.predict(list(images))
