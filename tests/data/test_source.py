from dataclasses import dataclass

import jsonargparse
import pytest
import torch

from flatbayes import data
from flatbayes.data import DataSource, RawSplits, Split


@dataclass(frozen=True, kw_only=True)
class Given(DataSource):
    """Examples made by the test.

    Attributes:
        raw: What is read.
    """

    raw: RawSplits

    def read(self) -> RawSplits:
        return self.raw


def part(count, start=0, num_classes=2):
    rows = torch.arange(start, start + count)
    return Split(inputs=rows.float()[:, None].repeat(1, 2), targets=rows % num_classes)


def raw(**changes):
    return RawSplits(**({"unsplit": part(100), "class_names": ("no", "yes"), "feature_names": ("a", "b")} | changes))


def images(count):
    return Split(inputs=torch.zeros(count, 1, 4, 6, dtype=torch.uint8), targets=torch.arange(count) % 2)


def values(part):
    return sorted(part.inputs[:, 0].tolist())


def test_one_pool_becomes_three_parts():
    loaded = Given(raw=raw()).load(0)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (72, 8, 20)
    assert values(loaded.train) + values(loaded.val) + values(loaded.test) != list(range(100))
    assert sorted(values(loaded.train) + values(loaded.val) + values(loaded.test)) == list(range(100))
    for each in (loaded.train, loaded.val, loaded.test):
        assert torch.equal(each.inputs[:, 0].long() % 2, each.targets)
    assert loaded.input_shape == (2,)
    assert loaded.num_classes == 2
    assert loaded.class_names == ("no", "yes")
    assert loaded.feature_names == ("a", "b")
    assert loaded.augment is None


def test_the_test_part_is_the_same_for_all_seeds():
    first, second = Given(raw=raw()).load(0), Given(raw=raw()).load(1)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert values(first.train) != values(second.train)
    assert values(Given(raw=raw(), split_seed=1).load(0).test) != values(first.test)


def test_parts_of_the_source_stay_as_they_are():
    loaded = Given(raw=raw(test=part(10, 100), val=part(5, 110)), train_size=40).load(0)
    assert loaded.test.inputs[:, 0].tolist() == list(range(100, 110))
    assert loaded.val.inputs[:, 0].tolist() == list(range(110, 115))
    assert len(loaded.train) == 40


def test_images_have_a_shape_and_may_be_augmented():
    loaded = Given(raw=RawSplits(unsplit=images(50), class_names=("a", "b")), flip=True, pad=2).load(0)
    assert loaded.input_shape == (1, 4, 6)
    assert (loaded.augment.flip, loaded.augment.pad) == (True, 2)


def test_features_cannot_be_flipped():
    with pytest.raises(ValueError, match="flip, pad and cutout are for images"):
        Given(raw=raw(), flip=True).load(0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"val_size": 80}, "training"),
        ({"val_size": 0}, "validation"),
        ({"test_size": 0}, "test"),
        ({"val_size": 0.001}, "validation"),
    ],
)
def test_an_empty_part_is_refused(options, name):
    with pytest.raises(ValueError, match=f"The {name} split is empty: of 100 examples"):
        Given(raw=raw(), **options).load(0)


def test_a_source_without_examples_is_refused():
    with pytest.raises(ValueError, match="2 of the 2 classes have no example"):
        Given(raw=raw(unsplit=part(0))).load(0)


def test_more_training_examples_than_there_are_is_refused():
    with pytest.raises(ValueError, match="train_size=73 examples were asked for, and 72 are left"):
        Given(raw=raw(), train_size=73).load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size is a number"),
        ({"val_size": -1}, "val_size is a fraction"),
        ({"test_size": 1.5}, "test_size is a fraction"),
        ({"split_seed": -1}, "split_seed must be 0 or more, got -1"),
        ({"pad": -1}, "pad is a number of pixels"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        Given(raw=raw(), **options)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        Given(raw=raw()).load(-1)


def test_inputs_that_are_not_finite_are_refused():
    bad = part(100)
    bad.inputs[7, 1] = float("nan")
    with pytest.raises(ValueError, match=r"The given examples hold 1 values .* row 7 .* feature 'b'"):
        Given(raw=raw(unsplit=bad)).load(0)
    with pytest.raises(ValueError, match=r"The test examples hold"):
        Given(raw=raw(test=bad)).load(0)


def test_parts_of_different_shapes_are_refused():
    wide = Split(inputs=torch.zeros(4, 3), targets=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"test examples have the shape \(3,\), and the others \(2,\)"):
        Given(raw=raw(test=wide)).load(0)


def test_labels_and_inputs_of_different_numbers_are_refused():
    odd = Split(inputs=torch.zeros(4, 2), targets=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 inputs and 5 labels"):
        Given(raw=raw(unsplit=odd)).load(0)


SOURCES = [
    kind
    for kind in vars(data).values()
    if isinstance(kind, type) and issubclass(kind, DataSource) and kind is not DataSource
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
