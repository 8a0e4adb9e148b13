"""A source with a subset of its test examples."""

import pytest
import torch

from flatbayes.core.spec import import_object
from flatbayes.data import CIFAR10, Digits, Split
from flatbayes.data.source import RawSplits
from reproduction.table_config import SourceSubset, subset_source


@pytest.fixture
def raw(monkeypatch):
    part = Split(inputs=torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1), targets=torch.arange(50) % 5)
    found = RawSplits(unsplit=part, test=part, class_names=tuple("abcde"))
    monkeypatch.setattr(CIFAR10, "read", lambda _: found)
    return found


def test_the_subset_of_the_test_split_is_the_same_for_every_seed(raw):
    source = subset_source(CIFAR10(val_size=10), 16)
    first, second = source.load(0), source.load(1)
    assert (len(first.train), len(first.val), len(first.test)) == (16, 10, 16)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.train.inputs, second.train.inputs)
    numbers = first.test.inputs.flatten().tolist()
    assert len(set(numbers)) == 16
    assert [number % 5 for number in numbers] == first.test.targets.tolist()


def test_a_limit_above_the_number_of_test_examples_changes_nothing(raw):
    assert SourceSubset(source=CIFAR10(), max_test_examples=50).read() is raw
    assert len(SourceSubset(source=CIFAR10(), max_test_examples=49).read().test) == 49


def test_a_source_without_a_test_split_has_none():
    assert SourceSubset(source=Digits(), max_test_examples=3).read().test is None


def test_split_and_augmentation_options_are_those_of_the_source():
    source = subset_source(CIFAR10(val_size=0.2, split_seed=3, flip=False, pad=2, cutout=5), 20)
    assert (source.val_size, source.split_seed, source.flip, source.pad, source.cutout) == (0.2, 3, False, 2, 5)
    assert subset_source(CIFAR10(val_size=5000), 20).val_size == 20


def test_the_class_path_of_version_0_1_is_answered_with_the_new_one():
    with pytest.raises(ValueError, match=r"in a checkout .* reproduction\.table_config\.SourceSubset"):
        import_object("flatbayes.paper.few.FewTests")
