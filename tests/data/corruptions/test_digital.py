import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from flatbayes.data.corruptions import CORRUPTIONS, corrupt_images


def digital(name, images, severity=3, seed=0):
    return CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(seed))


def test_contrast_scales_the_deviation_and_keeps_the_mean():
    images = torch.rand(5, 3, 8, 8)
    corrupted = digital("contrast", images, 5)
    torch.testing.assert_close(corrupted.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(corrupted.std((2, 3)), 0.18 * images.std((2, 3)))


def test_saturate_is_the_saturation_of_hsv():
    images = torch.rand(10, 3, 5, 5)
    corrupted = digital("saturate", images).permute(0, 2, 3, 1).reshape(-1, 3)
    for before, after in zip(images.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), corrupted, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, min(2.4 * saturation, 1), value)
        assert after.tolist() == pytest.approx(expected, abs=1e-4)


def test_saturate_keeps_gray_and_refuses_other_channels():
    gray = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(digital("saturate", gray), gray)
    with pytest.raises(ValueError, match="3 channels .* got 1"):
        digital("saturate", torch.rand(2, 1, 4, 4))


def test_pixelate_averages_blocks():
    images = torch.rand(3, 2, 8, 12)
    blocks = images.unflatten(3, (6, 2)).unflatten(2, (4, 2)).mean((3, 5))  # half as many pixels
    expected = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(digital("pixelate", images, 4), expected)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_pixelate_keeps_the_mean_whatever_the_cells(severity, size):
    images = torch.rand(3, 1, size, size)
    torch.testing.assert_close(digital("pixelate", images, severity).mean((2, 3)), images.mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(channels):
    images = torch.randint(0, 256, (3, channels, 8, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    corrupted = corrupt_images(images, "jpeg_compression", 3, white_value=255.0)
    for before, after in zip(images, corrupted, strict=True):
        stream = io.BytesIO()
        pixels = before.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(stream, "JPEG", quality=42)
        expected = torch.from_numpy(np.asarray(Image.open(stream)).reshape(pixels.shape).copy()).permute(2, 0, 1)
        assert torch.equal(after, expected)


def test_jpeg_of_other_channels_is_compressed_per_channel():
    images = torch.rand(2, 4, 8, 8)
    corrupted = digital("jpeg_compression", images)
    for channel in range(4):
        assert torch.equal(
            corrupted[:, channel : channel + 1], digital("jpeg_compression", images[:, channel : channel + 1])
        )


def test_elastic_transform_moves_pixels_and_keeps_values():
    plain = torch.full((2, 3, 9, 9), 0.7)
    torch.testing.assert_close(digital("elastic_transform", plain, 5), plain)
    ramp = torch.linspace(0, 1, 32).expand(60, 1, 32, 32)
    moves = 31 * (digital("elastic_transform", ramp, 3) - ramp)[..., 8:-8]
    assert 0.7 < float(moves.std()) < 1.3  # a little less than at the points in between which it is interpolated
    neighbours = moves.diff(dim=-2)
    assert neighbours.std() < 0.4 * moves.std()
