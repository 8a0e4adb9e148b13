import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from flatbayes.data.corruptions.sampling import average_shifts, compute_pixel_scale, sample_clouds, warp_images


def images(count=3, channels=2, height=6, width=7):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def at(image, row, column, mode):
    """A plane at one point, by SciPy: bilinear, continued as its edge ("nearest") or its mirror image ("reflect")."""
    return map_coordinates(image.numpy(), [[row], [column]], order=1, mode=mode)[0]


def test_average_shifts_equals_a_loop():
    before, generator = images(), torch.Generator().manual_seed(1)
    shifts, weights = 2 * torch.randn(3, 4, 2, generator=generator), torch.tensor([0.1, 0.2, 0.3, 0.4])
    after = average_shifts(before, shifts, weights)
    for n, c, i, j in [(0, 0, 0, 0), (1, 1, 5, 6), (2, 0, 3, 2), (0, 1, 2, 6)]:
        pairs = zip(shifts[n].tolist(), weights.tolist(), strict=True)
        expected = sum(w * at(before[n, c], i + down, j + right, "nearest") for (down, right), w in pairs)
        assert float(after[n, c, i, j]) == pytest.approx(expected, abs=1e-5)


def test_common_shifts_apply_to_every_image():
    before = images()
    shifts, weights = torch.tensor([[0.5, -1.2], [0.0, 3.4]]), torch.tensor([0.25, 0.75])
    torch.testing.assert_close(
        average_shifts(before, shifts, weights), average_shifts(before, shifts.expand(3, -1, -1), weights)
    )


def test_warp_images_equals_scipy():
    before, generator = images(), torch.Generator().manual_seed(1)
    offsets = 3 * torch.randn(3, 6, 7, 2, generator=generator)
    after = warp_images(before, offsets)
    for n, c, i, j in np.ndindex(3, 2, 6, 7):
        down, right = offsets[n, i, j].tolist()
        expected = at(before[n, c], i + down, j + right, "reflect")
        assert float(after[n, c, i, j]) == pytest.approx(expected, abs=1e-5)


def test_zero_shifts_are_the_identity():
    before = images()
    torch.testing.assert_close(warp_images(before, torch.zeros(1, 6, 7, 2)), before)
    assert torch.equal(average_shifts(before, torch.zeros(1, 2), torch.ones(1)), before)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (32, 32), (17, 40)])
def test_clouds_span_the_range_and_are_smooth(size):
    before = torch.zeros(20, 3, *size)
    fields = sample_clouds(before, torch.Generator().manual_seed(0))
    assert fields.shape == (20, 1, *size)
    assert fields.min() >= 0
    assert fields.max() <= 1
    if min(size) >= 8:
        assert torch.equal(fields.amax((1, 2, 3)), torch.ones(20))
        steps = fields.diff(dim=-1).square().mean()
        assert steps < fields.var()  # neighbours of white noise differ by twice its variance
    assert not torch.equal(fields[0], fields[1]) or size == (1, 1)


def test_lengths_shrink_with_the_root_of_the_size():
    assert compute_pixel_scale(torch.zeros(1, 3, 32, 40)) == 1
    assert compute_pixel_scale(torch.zeros(1, 1, 8, 8)) == 0.5
