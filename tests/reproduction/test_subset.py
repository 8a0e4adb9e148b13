"""A source with a few of its test examples, and all else as it is."""

import pytest
import torch

from flatbayes.data import CIFAR10, Digits, Split
from flatbayes.data.source import RawSplits
from reproduction.table_config import SourceSubset, subset_source


@pytest.fixture
def raw(monkeypatch):
    part = Split(inputs=torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1), targets=torch.arange(50) % 5)
    found = RawSplits(unsplit=part, test=part, class_names=tuple("abcde"))
    monkeypatch.setattr(CIFAR10, "read", lambda _: found)
    return found


def test_the_same_few_for_every_seed_out_of_the_test_part(raw):
    source = subset_source(CIFAR10(val_size=10), 16)
    first, second = source.load(0), source.load(1)
    assert (len(first.train), len(first.val), len(first.test)) == (16, 10, 16)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.train.inputs, second.train.inputs)
    numbers = first.test.inputs.flatten().tolist()
    assert len(set(numbers)) == 16
    assert [number % 5 for number in numbers] == first.test.targets.tolist()


def test_as_many_as_there_are(raw):
    assert SourceSubset(source=CIFAR10(), max_test_examples=50).read() is raw
    assert len(SourceSubset(source=CIFAR10(), max_test_examples=49).read().test) == 49


def test_a_source_without_a_test_part_is_split_as_ever():
    assert SourceSubset(source=Digits(), max_test_examples=3).read().test is None


def test_how_examples_are_split_and_changed_is_the_sources():
    source = subset_source(CIFAR10(val_size=0.2, split_seed=3, flip=False, pad=2, cutout=5), 20)
    assert (source.val_size, source.split_seed, source.flip, source.pad, source.cutout) == (0.2, 3, False, 2, 5)
    assert subset_source(CIFAR10(val_size=5000), 20).val_size == 20
