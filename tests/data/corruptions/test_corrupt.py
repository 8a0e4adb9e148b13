from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits

from flatbayes.data import CIFAR10, CORRUPTIONS, corrupt_images, infer_white_value, list_corruptions
from flatbayes.data.corruptions import STANDARD_CORRUPTIONS
from flatbayes.data.corruptions.sampling import sample_clouds


def digits(count=200):
    return torch.from_numpy(load_digits().images[:count].astype("uint8"))[:, None]


def photographs(count=100):
    """Smooth random images in color, 32 x 32, uint8."""
    generator = torch.Generator().manual_seed(5)
    planes = [sample_clouds(torch.empty(count, 1, 32, 32), generator) for _ in range(3)]
    return (255 * torch.cat(planes, 1)).round().to(torch.uint8)


FIXED = (
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "saturate",
)
DATA = {"digits": digits, "photographs": photographs}


@pytest.fixture(params=DATA, scope="module")
def images(request):
    return DATA[request.param]()


def distance(corrupted_images, other):
    return float((corrupted_images.double() - other.double()).square().mean().sqrt())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grows_with_severity_and_keeps_shape_dtype_and_range(name, images):
    if name not in list_corruptions(images.shape[1]):
        pytest.skip("for color only")
    before, white = images.clone(), infer_white_value(images)
    corrupted = [corrupt_images(images, name, severity) for severity in range(1, 6)]
    distances = [distance(corrupted_images, images) / white for corrupted_images in corrupted]
    assert distances == sorted(distances)
    assert all(far > 1.03 * near for near, far in pairwise(distances))
    assert 0.008 < distances[0] < 0.2
    assert 0.03 < distances[4] < 0.45
    for corrupted_images in corrupted:
        assert corrupted_images.dtype == torch.uint8
        assert corrupted_images.shape == images.shape
        assert corrupted_images.max() <= white
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_determines_the_noise(name):
    images = photographs(4)
    first = corrupt_images(images, name, 4, seed=3)
    assert torch.equal(first, corrupt_images(images, name, 4, seed=3))
    random = name not in FIXED
    assert torch.equal(first, corrupt_images(images, name, 4, seed=4)) != random
    copies = corrupt_images(images[:1].expand(2, -1, -1, -1), name, 4)
    assert torch.equal(copies[0], copies[1]) != random


def test_the_global_random_state_is_unchanged():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for name in CORRUPTIONS:
        corrupt_images(photographs(2), name, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (28, 28), (40, 64)])
def test_any_size(name, size):
    images = torch.rand(3, 3, *size)
    corrupted = corrupt_images(images, name, 5)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == torch.float32
    assert corrupted.isfinite().all()
    assert 0 <= corrupted.min() <= corrupted.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_results_scale_with_the_white_value(name):
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(
        corrupt_images(images, name, 3, white_value=1.0),
        corrupt_images(255 * images, name, 3) / 255,
        atol=1e-5,
        rtol=0,
    )


def test_chunks_have_independent_noise():
    corrupted = corrupt_images(torch.full((1100, 1, 2, 2), 0.5), "gaussian_noise", 3)
    assert len(corrupted.view(1100, -1).unique(dim=0)) == 1100


def test_severity_zero_is_a_copy():
    images = photographs(2)
    corrupted = corrupt_images(images, "fog", 0)
    assert torch.equal(corrupted, images)
    assert corrupted.data_ptr() != images.data_ptr()


def test_empty_input_gives_empty_output():
    assert corrupt_images(torch.zeros(0, 3, 8, 8), "fog", 3).shape == (0, 3, 8, 8)


def test_corruption_names():
    assert len(STANDARD_CORRUPTIONS) == 15
    assert len(CORRUPTIONS) == 19
    assert list_corruptions(3) == tuple(CORRUPTIONS)
    assert list_corruptions(3, standard_only=True) == tuple(STANDARD_CORRUPTIONS)
    assert "saturate" not in list_corruptions(1)


@pytest.mark.parametrize(("high", "white"), [(0.0, 1), (1.0, 1), (1.5, 16), (16.0, 16), (17.0, 255), (255.0, 255)])
def test_white_value(high, white):
    assert infer_white_value(torch.tensor([0.0, high]).view(1, 1, 1, 2)) == white


class TestRefuses:
    images = torch.rand(2, 3, 8, 8)

    def test_unknown_corruptions(self):
        with pytest.raises(ValueError, match=r"Unknown corruption 'rain'. Known: gaussian_noise, .*saturate"):
            corrupt_images(self.images, "rain", 1)

    @pytest.mark.parametrize("severity", [-1, 6, 1.5])
    def test_invalid_severities(self, severity):
        with pytest.raises(ValueError, match=f"from 1 to 5, or 0 for none; got {severity}"):
            corrupt_images(self.images, "fog", severity)

    def test_features(self):
        with pytest.raises(ValueError, match=r"for images.* got the shape \(2, 5\)"):
            corrupt_images(torch.rand(2, 5), "fog", 1)

    @pytest.mark.parametrize("bad", [-0.1, 256.0, float("nan")])
    def test_values_that_are_not_raw(self, bad):
        images = self.images.clone()
        images[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="raw, before any standardisation|missing or not finite"):
            corrupt_images(images, "fog", 1)


@pytest.mark.real_data
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grows_with_severity_on_photographs(name, real_data):
    images = CIFAR10().read().test.take(torch.arange(0, 10_000, 50)).inputs
    distances = [distance(corrupt_images(images, name, severity), images) for severity in range(6)]
    assert distances == sorted(distances)
