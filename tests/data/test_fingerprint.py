"""Fingerprints of data tell changed content from equal content."""

from dataclasses import replace

import pytest
import torch

from flatbayes.data import DataSplits, Digits, Split
from flatbayes.data import fingerprint as module
from flatbayes.data.fingerprint import compute_fingerprint, describe_split, explain_change

SPLITS = Digits(train_size=60).load(0)


def change(split, **values):
    return replace(SPLITS, **{split: replace(getattr(SPLITS, split), **values)})


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["inputs", "targets"])
@pytest.mark.parametrize("row", [0, -1])
def test_one_other_value_changes_the_fingerprint_of_its_split(split, kind, row):
    values = getattr(getattr(SPLITS, split), kind).clone()
    values.view(-1)[row] += 1
    stored, current = compute_fingerprint(SPLITS), compute_fingerprint(change(split, **{kind: values}))
    assert [name for name in stored if stored[name] != current[name]] == [split]
    assert explain_change(stored, current) == f"{split} has other values in its {len(values)} rows"


def test_equal_content_has_an_equal_fingerprint():
    copies = {
        name: replace(getattr(SPLITS, name), inputs=getattr(SPLITS, name).inputs.clone()) for name in ("train", "val")
    }
    assert compute_fingerprint(replace(SPLITS, **copies)) == compute_fingerprint(SPLITS)
    assert explain_change(compute_fingerprint(SPLITS), compute_fingerprint(SPLITS)) is None


def test_missing_and_reordered_rows_and_other_precisions_are_changes():
    train = SPLITS.train
    fewer, reordered = train.take(torch.arange(50)), train.take(torch.arange(60).flip(0))
    double = replace(train, inputs=train.inputs.double())
    fingerprints = [compute_fingerprint(replace(SPLITS, train=split)) for split in (train, fewer, reordered, double)]
    assert len({fingerprint["train"] for fingerprint in fingerprints}) == 4
    assert explain_change(fingerprints[0], fingerprints[1]) == "train has 50 rows instead of 60"


def test_large_data_are_sampled(monkeypatch):
    monkeypatch.setattr(module, "MAX_HASHED_BYTES", 2**10)
    split = Split(inputs=torch.zeros(1000, 3), targets=torch.zeros(1000, dtype=torch.int64))
    splits = DataSplits(
        train=split, val=split, test=split, class_names=("a",), feature_names=("a",) * 3, augment=None
    )
    other = replace(split, inputs=torch.ones(1000, 3))
    assert compute_fingerprint(splits)["train"] != compute_fingerprint(replace(splits, train=other))["train"]


def test_one_column_in_fortran_order():
    column = torch.arange(6.0, dtype=torch.float64).reshape(1, 6).T  # contiguous, with a stride of 6 in its last axis
    splits = [Split(inputs=inputs, targets=torch.arange(6)) for inputs in (column, torch.arange(6).double()[:, None])]
    assert describe_split(splits[0]) == describe_split(splits[1])
