"""Sources of arrays, tensors, data frames and given splits."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from flatbayes.data import Arrays, DataSplits, Digits, FixedSplits, Split, TorchDataset, make_source

FEATURES = np.random.default_rng(0).normal(size=(60, 3))
LABELS = np.arange(60) % 3


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        torch.as_tensor,
        lambda a: a.tolist(),
        lambda a: torch.as_tensor(a).requires_grad_(a.dtype.kind == "f"),
    ],
    ids=["array", "tensor", "list", "parameter"],
)
def test_pairs_of_every_kind_give_the_same_splits(convert):
    expected = Arrays(FEATURES, LABELS).load(1)
    splits = make_source((convert(FEATURES), convert(LABELS))).load(1)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(splits, name).targets, getattr(expected, name).targets)
        assert torch.equal(getattr(splits, name).input_tensor, getattr(expected, name).input_tensor)
    assert splits.class_names == ("0", "1", "2")


def test_data_frames_keep_the_names_of_their_columns():
    frame, series = pd.DataFrame(FEATURES, columns=["a", "b", "c"]), pd.Series(FEATURES[:, 0] * 2.0, name="price")
    splits = Arrays(frame, series).load(0)
    assert splits.feature_names == ("a", "b", "c")
    assert splits.target_names == ("price",)
    assert splits.is_regression
    two_targets = Arrays(frame[["a"]], frame[["b", "c"]]).load(0)
    assert two_targets.target_names == ("b", "c")


def test_columns_of_several_types_in_a_data_frame_are_numbers():
    frame = pd.DataFrame({"a": FEATURES[:, 0], "b": FEATURES[:, 1] > 0, "c": pd.array(LABELS, dtype="Int64")})
    expected = np.stack([FEATURES[:, 0], FEATURES[:, 1] > 0, LABELS], 1)
    assert np.array_equal(Arrays(frame, LABELS).read().unsplit.inputs.numpy(), expected)
    frame.loc[3, "c"] = pd.NA
    with pytest.raises(ValueError, match="missing or not finite; the first is nan in row 3 .*feature 'c'"):
        Arrays(frame, LABELS).load(0)


@pytest.mark.parametrize("names", [["a", "b", "c"], [0, 1, 2]], ids=["texts", "numbers"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_data_frames_of_given_splits_are_matched_by_name(split, names):
    frame, targets = pd.DataFrame(FEATURES, columns=names), pd.DataFrame(FEATURES[:, :2], columns=["u", "v"])
    given = (frame[names[::-1]].assign(word="x"), targets[["v", "u"]])
    examples = getattr(Arrays(frame, targets, **{split: given}).load(0), split)
    assert np.allclose(examples.input_tensor, FEATURES)
    assert np.allclose(examples.targets, FEATURES[:, :2])
    for wrong in ((frame[names[1:]], targets), (frame, targets[["u"]])):
        with pytest.raises(ValueError, match=r"data frame of .*(validation|test) examples lacks"):
            Arrays(frame, targets, **{split: wrong}).load(0)


def test_columns_of_the_same_name_are_refused():
    frame = pd.DataFrame(FEATURES, columns=["a", "b", "a"])
    for inputs, targets in ((frame, LABELS), (FEATURES, frame)):
        with pytest.raises(ValueError, match=r"several columns of the same name: \['a'\]"):
            Arrays(inputs, targets).load(0)


@pytest.mark.parametrize("kind", [str, object, "category"])
def test_texts_are_classes_in_alphabetic_order(kind):
    names = pd.Series(np.array(["cat", "ant", "bee"])[LABELS]).astype(kind)
    splits = Arrays(FEATURES, names, test=(FEATURES[:6], names[:6])).load(0)
    assert splits.class_names == ("ant", "bee", "cat")
    assert splits.test.targets.tolist() == [2, 0, 1, 2, 0, 1]


def test_given_splits_are_used_and_the_rest_is_for_training():
    splits = Arrays(FEATURES, LABELS, val=(FEATURES[:6], LABELS[:6]), test=(FEATURES[:9], LABELS[:9])).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (60, 6, 9)


def test_arrays_that_are_read_only_are_read_without_a_warning():
    features = FEATURES.astype(np.float32)
    features.flags.writeable = False
    assert Arrays(features, LABELS).load(0).input_shape == (3,)


def test_half_precision_is_read():
    assert Arrays(torch.as_tensor(FEATURES).bfloat16(), LABELS).load(0).train.input_tensor.dtype == torch.float32


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (FEATURES, LABELS[:50], r"same number of examples, got the shapes \(60, 3\) and \(50,\)"),
        (pd.DataFrame({"size": ["s", "m"] * 30}), LABELS, "columns size .* are no numbers"),
        (FEATURES, LABELS.astype(float), "option task of the data"),
        (FEATURES, LABELS - 1, "out of range.* For numbers set the option task of the data to regression"),
        (FEATURES, np.array([None, "a"] * 30, dtype=object), "30 of 60 labels are missing"),
        (FEATURES, np.array([["a", "b"]] * 60), "one class for each example"),
        (FEATURES, np.full(60, 1e30) * 1j, "must be whole numbers"),
        (np.array(5.0), LABELS, "same number of examples"),
    ],
)
def test_unusable_arrays_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        Arrays(inputs, targets).load(0)


def test_whole_numbers_are_a_regression_if_the_user_says_so():
    assert Arrays(FEATURES, LABELS, task="regression").load(0).is_regression


@pytest.mark.parametrize("dtype", [float, np.float32, np.int32])
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_whole_numbers_of_any_type_are_classes_if_the_user_says_so(dtype, shape):
    splits = Arrays(FEATURES, LABELS.astype(dtype).reshape(shape), task="classification").load(0)
    assert splits.train.targets.dtype == torch.int64
    assert splits.class_names == Arrays(FEATURES, LABELS).load(0).class_names


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**25])
def test_other_numbers_are_no_classes(value):
    labels = np.append(LABELS[1:].astype(float), value)
    with pytest.raises(ValueError, match="must be whole numbers"):
        Arrays(FEATURES, labels, task="classification").load(0)


def test_fixed_splits_are_the_same_for_every_seed():
    splits = Digits(train_size=30).load(0)
    source = make_source(splits)
    assert isinstance(source, FixedSplits)
    assert source.load(0) is source.load(7) is splits
    with pytest.raises(ValueError, match="leave out train_size"):
        replace(source, train_size=5)


def test_other_kinds_of_data_become_sources():
    dataset = TensorDataset(torch.as_tensor(FEATURES), torch.as_tensor(LABELS))
    assert isinstance(make_source(dataset), TorchDataset)
    assert make_source(Digits, train_size=5) == make_source(Digits(), train_size=5) == Digits(train_size=5)
    with pytest.raises(TypeError, match="got a int"):
        make_source(3)


def test_sources_with_other_arrays_are_not_equal():
    assert Arrays(FEATURES, LABELS) != Arrays(FEATURES, LABELS)
    split = Split(inputs=torch.zeros(2, 1), targets=torch.tensor([0, 1]))
    splits = DataSplits(
        train=split, val=split, test=split, class_names=("a", "b"), feature_names=("x",), augment=None
    )
    assert len({FixedSplits(splits), FixedSplits(splits)}) == 2
