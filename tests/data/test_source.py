from dataclasses import dataclass

import jsonargparse
import pytest
import torch

from flatbayes import data
from flatbayes.data import DataSource, RawSplits, Split


@dataclass(frozen=True, kw_only=True)
class InMemorySource(DataSource):
    """Source of examples that the test makes.

    Attributes:
        raw: What `read` returns.
    """

    raw: RawSplits

    def read(self) -> RawSplits:
        return self.raw


def make_split(count, start=0, num_classes=2):
    rows = torch.arange(start, start + count)
    return Split(inputs=rows.float()[:, None].repeat(1, 2), targets=rows % num_classes)


def make_raw(**changes):
    return RawSplits(
        **({"unsplit": make_split(100), "class_names": ("no", "yes"), "feature_names": ("a", "b")} | changes)
    )


def make_images(count):
    return Split(inputs=torch.zeros(count, 1, 4, 6, dtype=torch.uint8), targets=torch.arange(count) % 2)


def first_feature(split):
    return sorted(split.inputs[:, 0].tolist())


def test_one_set_is_split_into_three():
    splits = InMemorySource(raw=make_raw()).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (72, 8, 20)
    assert first_feature(splits.train) + first_feature(splits.val) + first_feature(splits.test) != list(range(100))
    assert sorted(first_feature(splits.train) + first_feature(splits.val) + first_feature(splits.test)) == list(
        range(100)
    )
    for split in (splits.train, splits.val, splits.test):
        assert torch.equal(split.inputs[:, 0].long() % 2, split.targets)
    assert splits.input_shape == (2,)
    assert splits.num_classes == 2
    assert splits.class_names == ("no", "yes")
    assert splits.feature_names == ("a", "b")
    assert splits.augment is None


def test_the_test_split_is_the_same_for_all_seeds():
    first, second = InMemorySource(raw=make_raw()).load(0), InMemorySource(raw=make_raw()).load(1)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert first_feature(first.train) != first_feature(second.train)
    assert first_feature(InMemorySource(raw=make_raw(), split_seed=1).load(0).test) != first_feature(first.test)


def test_splits_of_the_source_are_kept():
    splits = InMemorySource(raw=make_raw(test=make_split(10, 100), val=make_split(5, 110)), train_size=40).load(0)
    assert splits.test.inputs[:, 0].tolist() == list(range(100, 110))
    assert splits.val.inputs[:, 0].tolist() == list(range(110, 115))
    assert len(splits.train) == 40


def test_images_have_a_shape_and_may_be_augmented():
    splits = InMemorySource(raw=RawSplits(unsplit=make_images(50), class_names=("a", "b")), flip=True, pad=2).load(0)
    assert splits.input_shape == (1, 4, 6)
    assert (splits.augment.flip, splits.augment.pad) == (True, 2)


def test_features_cannot_be_flipped():
    with pytest.raises(ValueError, match="flip, pad and cutout are for images"):
        InMemorySource(raw=make_raw(), flip=True).load(0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"val_size": 80}, "training"),
        ({"val_size": 0}, "validation"),
        ({"test_size": 0}, "test"),
        ({"val_size": 0.001}, "validation"),
    ],
)
def test_an_empty_split_is_refused(options, name):
    with pytest.raises(ValueError, match=f"The {name} split is empty: of 100 examples"):
        InMemorySource(raw=make_raw(), **options).load(0)


def test_a_source_without_examples_is_refused():
    with pytest.raises(ValueError, match="2 of the 2 classes have no example"):
        InMemorySource(raw=make_raw(unsplit=make_split(0))).load(0)


def test_more_training_examples_than_there_are_is_refused():
    with pytest.raises(ValueError, match="train_size=73 examples were asked for, and 72 are left"):
        InMemorySource(raw=make_raw(), train_size=73).load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size is a number"),
        ({"val_size": -1}, "val_size is a fraction"),
        ({"test_size": 1.5}, "test_size is a fraction"),
        ({"split_seed": -1}, "split_seed must be from 0 to"),
        ({"pad": -1}, "pad is a number of pixels"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        InMemorySource(raw=make_raw(), **options)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        InMemorySource(raw=make_raw()).load(-1)


def test_inputs_that_are_not_finite_are_refused():
    bad = make_split(100)
    bad.inputs[7, 1] = float("nan")
    with pytest.raises(ValueError, match=r"The given examples hold 1 value .* row 7 .* feature 'b'"):
        InMemorySource(raw=make_raw(unsplit=bad)).load(0)
    with pytest.raises(ValueError, match=r"The test examples hold"):
        InMemorySource(raw=make_raw(test=bad)).load(0)


def test_splits_of_different_shapes_are_refused():
    wide = Split(inputs=torch.zeros(4, 3), targets=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"test examples have the shape \(3,\), and the others \(2,\)"):
        InMemorySource(raw=make_raw(test=wide)).load(0)


def test_labels_and_inputs_of_different_numbers_are_refused():
    odd = Split(inputs=torch.zeros(4, 2), targets=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 inputs and 5 labels"):
        InMemorySource(raw=make_raw(unsplit=odd)).load(0)


SOURCES = [
    source_class
    for source_class in vars(data).values()
    if isinstance(source_class, type) and issubclass(source_class, DataSource) and source_class is not DataSource
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_every_option_of_every_source_is_explained(source):
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(source)
    hidden = ("help", "config", "source.help")
    options = {action.dest: action.help for action in parser._actions if action.dest not in hidden}
    wanted = {"train_size", "val_size", "test_size", "split_seed", "flip", "pad"}
    assert wanted <= set(options) or {"train_size", "source"} <= set(options)  # or the options of another source
    assert all(text and len(text) > 10 for text in options.values()), options
