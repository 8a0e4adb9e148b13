"""A class at each position in data of every form: arrays, datasets, splits by hand."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from flatbayes.data import Arrays, DataSplits, Npz, Split, Table, TorchDataset
from flatbayes.data.checks import DataWarning
from flatbayes.data.class_split import ClassSplit
from flatbayes.data.stratified_split import hold_out_validation
from flatbayes.prediction.labelled import join_targets

IMAGES = torch.randn(80, 3, 4, 5)
MASKS = torch.arange(80 * 20).reshape(80, 4, 5) % 3
MASKS[0, 0] = -100


def splits_of(masks, **options):
    split = Split(inputs=IMAGES, targets=masks)
    options = {"class_names": ("a", "b", "c"), "feature_names": (), "augment": None} | options
    return DataSplits(train=split, val=split, test=split, **options)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int32", "float32"])
def test_masks_of_every_type(dtype):
    masks = MASKS.clamp_min(0).numpy().astype(dtype)
    splits = Arrays(IMAGES.numpy(), masks, task="dense" if dtype == "float32" else None).load(seed=0)
    assert splits.is_dense
    assert splits.class_names == ("0", "1", "2")
    assert splits.train.targets.dtype == torch.int64
    assert not (splits.is_regression)
    assert not (splits.is_multi_label)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [58, 6, 16]


def test_masks_of_files_and_datasets(tmp_path):
    np.savez(tmp_path / "masks.npz", x=IMAGES.numpy(), y=MASKS.numpy())
    for source in (Npz(path=str(tmp_path / "masks.npz")), TorchDataset(TensorDataset(IMAGES, MASKS))):
        splits = source.load(seed=0)
        assert splits.is_dense
        assert sum(int((split.targets == -100).sum()) for split in (splits.train, splits.val, splits.test)) == 5


def test_masks_that_are_images_are_read_as_indices():
    image = pytest.importorskip("PIL.Image")

    class Masks(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            mask = image.fromarray(MASKS[index + 1].numpy().astype(np.uint8))
            mask = mask.convert("P") if index % 2 else mask
            return image.fromarray(np.zeros((4, 5, 3), np.uint8)), mask

    splits = TorchDataset(Masks(), val_size=2, test_size=2).load(seed=0)
    assert splits.train.inputs.shape == (8, 3, 4, 5)
    assert splits.train.targets.shape == (8, 4, 5)
    assert splits.num_classes == 3


@pytest.mark.parametrize("as_array", [False, True])
def test_a_photo_that_is_turned_beside_a_mask_that_is_not_is_refused(as_array):
    """Viewers turn the photo by its EXIF entry; nothing says for which of both the mask was drawn."""
    image = pytest.importorskip("PIL.Image")

    class Photos(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            photo = image.fromarray(np.zeros((4, 5, 3), np.uint8))
            photo.getexif()[0x0112] = 1 if index < 3 else 3
            mask = MASKS[index + 1].numpy().astype(np.uint8)
            return photo, mask if as_array else image.fromarray(mask)

    with pytest.raises(ValueError, match=r"Item 3 of train of Photos .*orientation 3.*stored.*exif_transpose"):
        TorchDataset(Photos()).read()


@pytest.mark.parametrize("changes_masks", [False, True])
def test_images_that_are_augmented_without_their_masks_are_noted(changes_masks):
    class Flipped(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            image, mask = IMAGES[index], MASKS[index]
            if torch.rand(()) < 0.5:
                image, mask = image.flip(-1), mask.flip(-1) if changes_masks else mask
            return image, mask

    torch.manual_seed(0)
    with pytest.warns(DataWarning) as caught:
        TorchDataset(Flipped()).read()
    assert ("Its target, an array, is the same" in str(caught[0].message)) != changes_masks


def test_rows_of_tags_are_positions():
    tags = torch.arange(240).reshape(80, 3) % 5
    assert Arrays(torch.randn(80, 3), tags).load(seed=0).is_dense
    binary = Arrays(torch.randn(80, 3), tags % 2).load(seed=0)  # may be several labels
    assert binary.is_multi_label
    assert Arrays(torch.randn(80, 3), tags % 2, task="dense").load(seed=0).is_dense


def test_splits_by_hand():
    splits = splits_of(MASKS)
    assert splits.is_dense
    assert repr(splits) == "<DataSplits: 80 train, 80 val, 80 test examples of shape (3, 4, 5), 3 classes>"
    split = Split(inputs=IMAGES, targets=torch.arange(80) % 3)
    with pytest.raises(ValueError, match=r"shape \(80,\), and those of the training split \(80, 4, 5\)"):
        DataSplits(train=splits.train, val=split, test=split, class_names=("a", "b"), feature_names=(), augment=None)


def test_held_out_images_are_drawn_at_random():
    empty = Split(inputs=IMAGES[:0], targets=MASKS[:0])
    splits = splits_of(MASKS)
    held_out = hold_out_validation(
        DataSplits(
            train=splits.train, val=empty, test=empty, class_names=("a", "b", "c"), feature_names=(), augment=None
        ),
        0.15,
        seed=0,
    )
    assert (len(held_out.train), len(held_out.val)) == (68, 12)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            torch.where(MASKS == 2, -1, MASKS),
            r"out of range: labels go from 0 to 1.* is -1 in row 0.*position \(1, 0",
        ),
        (torch.zeros_like(MASKS), "needs at least 2 classes, got 1"),
        (MASKS.float() + 0.5, r"must be whole numbers \(integers\) of the shape \[n, \*positions\]"),
    ],
    ids=["negative", "one_class", "fractions"],
)
def test_other_masks_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        Arrays(IMAGES, masks, task="dense").load(seed=0)


def test_classes_are_asked_for_with_the_likelihood():
    with pytest.raises(ValueError, match="pass likelihood=DenseCategorical"):
        Arrays(torch.randn(12, 3), torch.eye(3).long().repeat(4, 1)).load(seed=0)  # one-hot rows


def test_what_needs_one_class_is_refused():
    with pytest.raises(ValueError, match="A table has a column for each target, here .*'b'.*dense"):
        Table(path="task.csv", target="b", task="dense")
    with pytest.raises(ValueError, match="a class for each position"):
        ClassSplit(source=Arrays(IMAGES, MASKS)).load(seed=0)


def test_targets_of_batches_of_several_sizes():
    joined = join_targets([torch.zeros(1, 2, 3).long(), torch.ones(2, 3, 1).to(torch.uint8)])
    assert joined.shape == (3, 3, 3)
    assert joined[0].tolist() == [[0, 0, 0], [0, 0, 0], [-100] * 3]
    assert joined[1].tolist() == 3 * [[1, -100, -100]]
