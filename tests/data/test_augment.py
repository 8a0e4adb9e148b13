import pytest
import torch

from flatbayes.data import Augment
from flatbayes.data.augment import cut_out_squares


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, kind=torch.uint8):
    return torch.randint(1, 256, (count, 3, 5, 6), generator=generator(1)).to(kind)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_flip_gives_the_image_or_its_mirror(kind):
    before = images(64, kind)
    after = Augment(flip=True, pad=0)(before, generator())
    flipped = [torch.equal(new, old.flip(-1)) for old, new in zip(before, after, strict=True)]
    kept = [torch.equal(new, old) for old, new in zip(before, after, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48
    assert after.dtype == kind


def windows(image, pad):
    """Every window of the padded image, by a slow loop."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    return [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]


def test_pad_cuts_every_window_of_the_padded_image_and_nothing_else():
    before = images(1)
    after = Augment(flip=False, pad=2)(before.expand(600, -1, -1, -1), generator())
    slow = windows(before[0], 2)
    matches = [[torch.equal(new, window) for window in slow] for new in after]
    assert all(sum(row) == 1 for row in matches)
    assert all(any(column) for column in zip(*matches, strict=True))


def test_flip_and_pad_give_windows_of_the_image_or_its_mirror():
    before = images(20)
    after = Augment(flip=True, pad=1)(before, generator())
    for old, new in zip(before, after, strict=True):
        assert any(torch.equal(new, window) for window in windows(old, 1) + windows(old.flip(-1), 1))


def test_the_generator_determines_the_result():
    before, augment = images(16), Augment(flip=True, pad=2)
    assert torch.equal(augment(before, generator(3)), augment(before, generator(3)))
    assert not torch.equal(augment(before, generator(3)), augment(before, generator(4)))


def test_images_are_not_modified():
    before = images(8)
    copy = before.clone()
    Augment(flip=True, pad=2)(before, generator())
    assert torch.equal(before, copy)


def test_without_augmentation_images_and_generator_are_unchanged():
    before, state = images(4), generator()
    assert torch.equal(Augment(flip=False, pad=0)(before, state), before)
    assert torch.equal(state.get_state(), generator().get_state())


def test_a_pad_larger_than_the_image_gives_black_images():
    after = Augment(flip=False, pad=50)(images(200), generator())
    assert after.shape == (200, 3, 5, 6)
    assert (after.flatten(1).sum(1) == 0).any()


def test_a_negative_pad_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Augment(flip=False, pad=-1)


@pytest.mark.gpu
def test_images_on_a_gpu_are_augmented_by_a_cpu_generator():
    before, augment = images(16), Augment(flip=True, pad=2)
    after = augment(before.cuda(), generator())
    assert after.device.type == "cuda"
    assert torch.equal(after.cpu(), augment(before, generator()))


def test_cut_out_squares_sets_exactly_one_square_to_black():
    before = images(3)
    rows, columns = torch.tensor([0, 2, 4]), torch.tensor([0, 3, 5])
    after = cut_out_squares(before.clone(), rows, columns, 3)
    for k, (row, column) in enumerate([(0, 0), (2, 3), (4, 5)]):
        expected = before[k].clone()
        expected[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0
        assert torch.equal(after[k], expected)


def test_cutout_sets_one_square_of_each_image_to_black():
    before = images(400)
    after = Augment(flip=False, pad=0, cutout=2)(before.clone(), generator())
    black = (after == 0).all(1)
    assert black.flatten(1).any(1).all()
    assert black.any(0).all()  # it gets everywhere
    assert black.flatten(1).sum(1).max() == 4
    assert torch.equal(after, before.masked_fill(black[:, None], 0))
    both = Augment(flip=True, pad=2, cutout=2)(before.clone(), generator())
    without = Augment(flip=True, pad=2)(before.clone(), generator())
    assert torch.equal(both, without.masked_fill((both == 0).all(1)[:, None], 0))
    with pytest.raises(ValueError, match="cutout is a number of pixels"):
        Augment(flip=False, pad=0, cutout=-1)


def test_masks_are_moved_as_their_images():
    """The class is a function of the pixel, before and after; what comes from outside has no class."""
    images = torch.randint(1, 4, (50, 1, 6, 7), generator=torch.Generator().manual_seed(0))
    augment = Augment(flip=True, pad=2, cutout=2, ignore_index=255)
    moved = Augment(flip=True, pad=2)(images, torch.Generator().manual_seed(1))[:, 0]
    masks = augment.move_masks(images[:, 0] - 1, torch.Generator().manual_seed(1))
    assert torch.equal(masks, torch.where(moved == 0, 255, moved - 1))
    assert not torch.equal(moved, images[:, 0])
