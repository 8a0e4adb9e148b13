import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from flatbayes.data import (
    Arrays,
    DataSplits,
    DataWarning,
    FixedSplits,
    Npz,
    Split,
    TorchDataset,
    load_training_splits,
    make_source,
)
from flatbayes.data.readers import set_task
from flatbayes.data.split_checks import warn_of_untrained_classes

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.stack([torch.arange(40) % 2, torch.arange(40) % 3 == 0, torch.arange(40) % 5 < 2], dim=1).long()
ONE_HOT = torch.eye(3, dtype=torch.int64)[torch.arange(40) % 3]
FRAME = pd.DataFrame(Y.numpy(), columns=["red", "green", "blue"])


class Rows(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return X[index], Y[index].tolist()


TARGETS = {
    "int64": Y,
    "bool": Y.bool(),
    "float32": Y.float(),
    "uint8": Y.numpy().astype("uint8"),
    "list": Y.tolist(),
    "frame": FRAME,
    "frame of booleans": FRAME.astype(bool),
    "frame of nullable integers": FRAME.astype("Int64"),
    "frame of nullable booleans": FRAME.astype("boolean"),
    "frame of objects": FRAME.astype(object),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_rows_of_zeros_and_ones_are_several_labels(kind):
    splits = load_training_splits((X, TARGETS[kind]))
    assert splits.is_multi_label
    assert not splits.is_regression
    assert torch.equal(splits.train.targets, Y)
    names = tuple(FRAME.columns) if "frame" in kind else ("label_0", "label_1", "label_2")
    assert (splits.target_names, splits.class_names) == (names, ())
    assert repr(splits) == "<DataSplits: 40 train, 0 val, 0 test examples of shape (3,), 3 labels>"


@pytest.mark.parametrize(
    "dataset", [TensorDataset(X, Y), TensorDataset(X, Y.float()), Rows()], ids=["int", "float", "list"]
)
def test_rows_of_a_dataset_are_several_labels(dataset):
    splits = TorchDataset(dataset).load(seed=0)
    assert splits.is_multi_label
    assert (len(splits.train), splits.target_names) == (29, ("label_0", "label_1", "label_2"))


def test_labels_of_a_file_have_the_name_of_its_array(tmp_path):
    path = tmp_path / "task.npz"
    np.savez(path, x=X.numpy(), tags=Y.numpy(), x_test=X[:5].numpy(), tags_test=Y[:5].numpy())
    splits = Npz(path=str(path), targets="tags", test_targets="tags_test").load(seed=0)
    assert splits.target_names == ("tags_0", "tags_1", "tags_2")
    assert torch.equal(splits.test.targets, Y[:5])


@pytest.mark.parametrize("missing", ["NaN", "-100", "None", "NA"])
def test_missing_labels_are_marked(missing):
    expected = Y.clone()
    expected[4, 1] = -100
    targets = {
        "NaN": Y.double().index_put((torch.tensor(4), torch.tensor(1)), torch.tensor(math.nan).double()),
        "-100": expected,
        "None": [[None if value == -100 else value for value in row] for row in expected.tolist()],
        "NA": FRAME.astype("Int64").mask((expected == -100).numpy()),
    }[missing]
    for data in ((X, targets), (X.numpy(), targets)):
        assert torch.equal(load_training_splits(data).train.targets, expected)


def test_rows_with_a_single_one_are_labels_only_on_request():
    for targets in (ONE_HOT, ONE_HOT.float()):
        with pytest.raises(ValueError, match=r"likelihood=Bernoulli\(num_labels\).*--data.task multi_label"):
            Arrays(X, targets).load(seed=0)
        assert Arrays(X, targets, task="multi_label").load(seed=0).is_multi_label
        assert set_task(Arrays(X, targets), "multi_label").load(seed=0).is_multi_label
    assert load_training_splits((X, Y), val=(X, ONE_HOT)).is_multi_label  # validation examples are of the same task


def test_several_numbers_of_zero_and_one_are_a_regression_on_request():
    assert Arrays(X, Y, task="regression").load(seed=0).is_regression


@pytest.mark.parametrize(
    "targets", [Y[:, 0], Y[:, :1], FRAME[["red"]].astype("Int64")], ids=["row", "column", "frame"]
)
def test_there_may_be_one_label(targets):
    splits = load_training_splits((X, targets), task="multi_label")
    assert splits.is_multi_label
    assert torch.equal(splits.train.targets, Y[:, :1])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Y + 1, r"neither 0 nor 1; the first is 2 in row 0 .*label 'label_1'. Write -100"),
        (Y / 2, r"must be 0 or 1 for each label, got 0.5 in row 0 .*given by a DataLoader"),
        (FRAME.replace({0: "no", 1: "yes"}), "are texts.*Write several labels of each example as 0 and 1"),
        (Y[:, :, None], r"of the shape \[n, labels\], got int64 of the shape \(40, 3, 1\)"),
    ],
    ids=["integers", "fractions", "texts", "axes"],
)
def test_labels_are_zeros_and_ones(targets, message):
    with pytest.raises(ValueError, match=message):
        Arrays(X, targets, task="multi_label").load(seed=0)


def test_unknown_tasks_are_refused():
    with pytest.raises(
        ValueError, match="task must be classification, regression, multi_label, dense, or None, got 'labels'"
    ):
        Arrays(X, Y, task="labels")


def test_columns_of_validation_labels_are_matched_by_name():
    splits = load_training_splits((X, FRAME), val=(X, FRAME[["blue", "red", "green"]]))
    assert torch.equal(splits.val.targets, Y)


def test_splits_have_sizes_as_asked():
    splits = Arrays(X, Y, train_size=10, val_size=5, test_size=6).load(seed=1)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [10, 5, 6]
    assert make_source(FixedSplits(splits)).load(seed=3) is splits


def splits_of(targets, **names):
    split = Split(inputs=X, targets=targets)
    return DataSplits(train=split, val=split, test=split, feature_names=(), augment=None, **names)


def test_splits_by_hand():
    splits = splits_of(Y, class_names=(), target_names=("red", "green", "blue"))
    assert splits.is_multi_label
    with pytest.raises(ValueError, match="one class for each example or position. .*give target_names"):
        splits_of(Y, class_names=("red", "green", "blue"))
    with pytest.raises(ValueError, match="2 target_names. Give one name for each column"):
        splits_of(Y, class_names=(), target_names=("red", "green"))


@pytest.mark.parametrize(("value", "row"), [(0, slice(None)), (1, slice(None)), (-100, slice(1, None))], ids=str)
def test_labels_with_one_value_are_warned_of(value, row):
    targets = Y.clone()
    targets[row, 1] = value
    with pytest.warns(DataWarning, match="1 of the 3 labels has at most one of the values 0 and 1.*'green'"):
        warn_of_untrained_classes(splits_of(targets, class_names=(), target_names=("red", "green", "blue")))
