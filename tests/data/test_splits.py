from dataclasses import replace

import pytest
import torch

from flatbayes.data import DataSplits, Split
from flatbayes.data.split_checks import check_split_values
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.training import TrainingConfig, fit


def make_splits(targets, **names):
    split = Split(inputs=torch.zeros(4, 2), targets=targets)
    names = {"class_names": (), "target_names": ()} | names
    return DataSplits(train=split, val=split, test=split, feature_names=("a", "b"), augment=None, **names)


def test_names_determine_the_task():
    assert not make_splits(torch.zeros(4, dtype=torch.int64), class_names=("no", "yes")).is_regression
    assert make_splits(torch.zeros(4), target_names=("y",)).is_regression
    assert make_splits(torch.zeros(4, 2), target_names=("y", "z")).is_regression


def test_names_of_both_kinds_or_none_are_refused():
    with pytest.raises(ValueError, match=r"either class_names .* or target_names .*, got 0 and 0"):
        make_splits(torch.zeros(4))
    with pytest.raises(ValueError, match="got 2 and 1 of them"):
        make_splits(torch.zeros(4), class_names=("a", "b"), target_names=("y",))


def test_targets_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match=r"train split must be classes \(int64\), got torch.float32"):
        make_splits(torch.zeros(4), class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"train split must be numbers \(float32 or float64\), got torch.int64"):
        make_splits(torch.zeros(4, dtype=torch.int64), target_names=("y",))
    with pytest.raises(ValueError, match=r"targets of the shape \(4, 2\), and 1 target_names"):
        make_splits(torch.zeros(4, 2), target_names=("y",))


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (torch.zeros(0), {"target_names": ("y",)}),
        (torch.zeros(0, 2), {"target_names": ("y", "z")}),
        (torch.zeros(0, dtype=torch.int64), {"class_names": ("no", "yes")}),
    ],
)
def test_empty_splits_are_finite(targets, names):
    splits = make_splits(targets.new_zeros(4, *targets.shape[1:]), **names)
    empty = Split(inputs=torch.zeros(0, 2), targets=targets)
    check_split_values(replace(splits, val=empty, test=empty))
    infinite = replace(splits.train, inputs=torch.full((4, 2), torch.inf))
    with pytest.raises(ValueError, match=r"train examples hold 8 values .* feature 'a'"):
        check_split_values(replace(splits, train=infinite, val=empty))


def test_subsample_is_a_reproducible_random_sample():
    split = Split(inputs=torch.arange(300)[:, None].float(), targets=torch.arange(300) // 100)
    subset = split.subsample(30)
    assert len(subset) == 30
    assert set(subset.targets.tolist()) == {0, 1, 2}
    assert (subset.inputs.diff(dim=0) > 0).all()
    assert torch.equal(subset.inputs, split.subsample(30).inputs)
    assert split.subsample(300) is split


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("label", [-100, -1, 2])
def test_labels_of_splits_made_by_hand_are_in_range(name, label):
    splits = make_splits(torch.tensor([0, 1, 0, 1]), class_names=("no", "yes"))
    wrong = Split(inputs=torch.zeros(4, 2), targets=torch.tensor([0, 1, 0, label]))
    message = rf"1 label of the {name} examples is out of range.* the first wrong one is {label} in row 3"
    with pytest.raises(ValueError, match=message):
        fit(MLP, replace(splits, **{name: wrong}), MAP(), config=TrainingConfig(epochs=1))
