import numpy as np
import pytest
import torch

from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data import CIFAR10, ClassSplit, Diabetes, Digits, Npz


def rows(split):
    return {tuple(row) for row in split.inputs.flatten(1).tolist()}


def test_digits_are_the_default_source():
    source = ClassSplit()
    splits, ood = source.load(0), source.read_ood()
    assert splits.class_names == ("0", "1", "2", "3", "4")
    everything = Digits().read().unsplit
    num_in_distribution = int((everything.targets < 5).sum())
    assert len(splits.train) + len(splits.val) + len(splits.test) == num_in_distribution
    assert ood.targets.unique().tolist() == [5, 6, 7, 8, 9]
    assert len(ood) == round((len(everything) - num_in_distribution) / 2)
    for split in (splits.train, splits.val, splits.test):
        assert not rows(split) & rows(ood)


def test_labels_follow_the_order_of_the_classes():
    splits = ClassSplit(classes=(7, 3)).load(0)
    assert splits.class_names == ("7", "3")
    originals = Digits().read().unsplit
    by_image = {
        tuple(x): int(y) for x, y in zip(originals.inputs.flatten(1).tolist(), originals.targets, strict=True)
    }
    for image, label in zip(splits.train.inputs.flatten(1).tolist(), splits.train.targets.tolist(), strict=True):
        assert by_image[tuple(image)] == (7, 3)[label]


def test_the_options_of_the_source_apply_except_train_size():
    source = ClassSplit(
        source=Digits(train_size=3, test_size=100, val_size=50, split_seed=4, flip=True), train_size=30
    )
    splits = source.load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 50, 100)
    assert splits.augment.flip
    # 100 of 901 examples inside are a share; 896 outside are judged by the same.
    assert len(source.read_ood()) == pytest.approx(100 / 901 * 896, abs=2)
    other = ClassSplit(source=Digits(test_size=100, val_size=50, split_seed=5), train_size=30)
    assert rows(source.read_ood()) != rows(other.read_ood())


def test_the_test_split_of_the_source_is_kept(tmp_path):
    labels, test = torch.arange(40) % 4, torch.arange(12) % 4
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(40, 3)), y=labels, x_test=np.eye(12, 3), y_test=test)
    source = ClassSplit(source=Npz(path=str(path)), classes=(1, 2))
    assert len(source.load(0).test) == 6
    assert source.load(0).test.targets.unique().tolist() == [0, 1]
    ood = source.read_ood()
    assert ood.targets.tolist() == [0, 3, 0, 3, 0, 3]
    assert torch.equal(ood.inputs, torch.eye(12, 3)[[0, 3, 4, 7, 8, 11]])


def test_encoded_images_are_selected(tmp_path, write_parquet, pixels):
    train, test = pixels(40), pixels(20, seed=1)
    write_parquet(tmp_path / "train.parquet", train, list(range(10)) * 4)
    write_parquet(tmp_path / "test.parquet", test, list(range(10)) * 2)
    source = ClassSplit(source=CIFAR10(root=str(tmp_path), val_size=5), classes=(0, 1, 2, 8, 9))
    splits, ood = source.load(0), source.read_ood()
    assert splits.class_names == ("airplane", "automobile", "bird", "ship", "truck")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (15, 5, 10)
    assert splits.test.targets.tolist() == [0, 1, 2, 3, 4] * 2
    images = torch.from_numpy(test).permute(0, 3, 1, 2)
    assert torch.equal(splits.test.inputs, images[[0, 1, 2, 8, 9, 10, 11, 12, 18, 19]])
    assert torch.equal(ood.inputs, images[[3, 4, 5, 6, 7, 13, 14, 15, 16, 17]])


def test_round_trips_through_a_spec():
    source = ClassSplit(source=Digits(test_size=0.3), classes=(1, 2), train_size=9)
    assert instantiate(to_spec(source)) == source


@pytest.mark.parametrize("classes", [(1,), (1, 1), (0, 10), (-1, 2), tuple(range(10))])
def test_refuses_classes_without_ood_classes(classes):
    with pytest.raises(ValueError, match="at least 2 of the 10 classes"):
        ClassSplit(classes=classes).read()
    with pytest.raises(ValueError, match="leave at least 1 outside; got"):
        ClassSplit(classes=classes).read_ood()


def test_refuses_a_regression():
    with pytest.raises(ValueError, match="their targets are numbers"):
        ClassSplit(source=Diabetes()).load(0)


def test_refuses_train_size_zero():
    with pytest.raises(ValueError, match="1 or more, or None; got 0"):
        ClassSplit(train_size=0)
