import colorsys

import pytest
import torch

from flatbayes.data.corruptions import CORRUPTIONS


def weather(name, images, severity=3, seed=0):
    return CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(seed))


@pytest.fixture
def colors():
    return torch.rand(20, 3, 6, 6)


def test_brightness_is_the_value_of_hsv(colors):
    corrupted = weather("brightness", colors).clamp(0, 1)
    pairs = zip(
        colors.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), corrupted.permute(0, 2, 3, 1).reshape(-1, 3), strict=True
    )
    for before, after in pairs:
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.21, 1))
        assert after.tolist() == pytest.approx(expected, abs=1e-5)


def test_brightness_of_black_and_of_gray_images():
    assert torch.equal(weather("brightness", torch.zeros(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.21))
    torch.testing.assert_close(weather("brightness", torch.full((1, 1, 2, 2), 0.5)), torch.full((1, 1, 2, 2), 0.71))


def test_fog_adds_light_and_keeps_the_brightest_value(colors):
    corrupted = weather("fog", colors, 5)
    assert (corrupted <= colors.amax((1, 2, 3), keepdim=True) + 1e-6).all()
    black = torch.zeros(5, 1, 8, 8)
    black[:, :, 0, 0] = 1
    assert weather("fog", black, 5).mean() > 0.2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["fog", "frost", "snow", "spatter", "brightness"])
def test_any_number_of_channels(name, channels):
    corrupted = weather(name, torch.rand(4, channels, 8, 10), 5)
    assert corrupted.shape == (4, channels, 8, 10)
    assert corrupted.isfinite().all()


@pytest.mark.parametrize("name", ["frost", "snow", "spatter"])
def test_black_images_get_lighter(name):
    corrupted = weather(name, torch.zeros(10, 3, 32, 32), 5)
    assert corrupted.min() >= 0
    assert 0.05 < corrupted.clamp(0, 1).mean() < 0.8


def test_spatter_covers_its_fraction():
    corrupted = weather("spatter", torch.zeros(50, 1, 32, 32), 5)
    assert float((corrupted > 0.4 * 0.8).double().mean()) == pytest.approx(0.33, abs=0.04)


def test_frost_is_thicker_at_the_border():
    corrupted = weather("frost", torch.zeros(200, 1, 32, 32), 3)
    assert corrupted[..., 0, :].mean() > 1.5 * corrupted[..., 14:18, 14:18].mean()
