import pytest
import torch

from flatbayes.data import DataSplits, Split


def dataset(targets, **names):
    part = Split(inputs=torch.zeros(4, 2), targets=targets)
    names = {"class_names": (), "target_names": ()} | names
    return DataSplits(train=part, val=part, test=part, feature_names=("a", "b"), augment=None, **names)


def test_the_task_follows_from_the_names():
    assert not dataset(torch.zeros(4, dtype=torch.int64), class_names=("no", "yes")).is_regression
    assert dataset(torch.zeros(4), target_names=("y",)).is_regression
    assert dataset(torch.zeros(4, 2), target_names=("y", "z")).is_regression


def test_names_of_both_kinds_or_none_are_refused():
    with pytest.raises(ValueError, match=r"either class_names .* or target_names .*, got 0 and 0"):
        dataset(torch.zeros(4))
    with pytest.raises(ValueError, match="got 2 and 1 of them"):
        dataset(torch.zeros(4), class_names=("a", "b"), target_names=("y",))


def test_targets_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match=r"train split must be classes \(int64\), got torch.float32"):
        dataset(torch.zeros(4), class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"train split must be numbers \(float32\), got torch.int64"):
        dataset(torch.zeros(4, dtype=torch.int64), target_names=("y",))
    with pytest.raises(ValueError, match=r"targets of the shape \(4, 2\), and 1 target_names"):
        dataset(torch.zeros(4, 2), target_names=("y",))


def test_some_examples_are_a_sample_of_all_classes_and_the_same_again():
    part = Split(inputs=torch.arange(300)[:, None].float(), targets=torch.arange(300) // 100)
    some = part.subsample(30)
    assert len(some) == 30
    assert set(some.targets.tolist()) == {0, 1, 2}
    assert (some.inputs.diff(dim=0) > 0).all()
    assert torch.equal(some.inputs, part.subsample(30).inputs)
    assert part.subsample(300) is part
