import pytest
import torch
from scipy.ndimage import gaussian_filter

from flatbayes.data.corruptions import CORRUPTIONS
from flatbayes.data.corruptions.sampling import average_shifts

BLURS = ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur")


def blurred(name, images, severity=3, seed=0):
    return CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(seed))


def point(size=33):
    image = torch.zeros(1, 1, size, size)
    image[..., size // 2, size // 2] = 1
    return image


def moments(image):
    """Sum, and variances down and right, of a plane of weights."""
    size = image.shape[-1]
    line = torch.arange(size) - size // 2
    rows, columns = image[0, 0].sum(1), image[0, 0].sum(0)
    return float(image.sum()), float((rows * line**2).sum()), float((columns * line**2).sum())


@pytest.mark.parametrize("name", BLURS)
@pytest.mark.parametrize("size", [1, 5, 8, 32])
def test_constant_images_are_unchanged(name, size):
    images = torch.full((2, 3, size, size + 1), 0.3)
    torch.testing.assert_close(blurred(name, images, 5), images)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur"])
def test_blur_keeps_the_sum(name):
    assert moments(blurred(name, point(), 5))[0] == pytest.approx(1, abs=1e-5)


def test_gaussian_blur_equals_scipy():
    torch.manual_seed(0)
    images = average_shifts(torch.rand(1, 1, 32, 32), torch.randn(50, 2), torch.full((50,), 0.02))  # smooth
    expected = gaussian_filter(images[0, 0].double().numpy(), 2.0, mode="nearest")
    torch.testing.assert_close(
        blurred("gaussian_blur", images, 5)[0, 0].double(), torch.from_numpy(expected), atol=5e-3, rtol=0
    )


def test_defocus_has_the_variance_of_a_disk():
    # A quarter of the squared radius along either axis, and at most a quarter pixel from interpolation.
    _, down, right = moments(blurred("defocus_blur", point(), 5))
    assert down == pytest.approx(9.0 / 4 * (33 / 32), abs=0.25)
    assert right == pytest.approx(down, rel=1e-3)


def test_motion_blur_has_one_direction_per_image():
    images = point().expand(40, -1, -1, -1)
    blurred_images = blurred("motion_blur", images, 5)
    line = (torch.arange(33) - 16).float()
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    angles = []
    for weights in blurred_images.view(40, -1):
        covariance = (grid * weights[:, None]).T @ grid
        thin, long = torch.linalg.eigvalsh(covariance)
        assert thin < 0.3
        assert long > 7
        vector = torch.linalg.eigh(covariance).eigenvectors[:, 1]
        angles.append(float(torch.atan2(vector[0], vector[1])) % torch.pi)
    assert max(angles) - min(angles) > 2


def test_zoom_keeps_the_center_and_changes_the_border():
    torch.manual_seed(0)
    images = torch.rand(4, 1, 33, 33)
    blurred_images = blurred("zoom_blur", images, 5)
    torch.testing.assert_close(blurred_images[..., 16, 16], images[..., 16, 16])
    assert (blurred_images[..., 0, :] - images[..., 0, :]).abs().mean() > 0.1


def test_glass_blur_has_normally_distributed_offsets():
    images = torch.linspace(0, 1, 32).expand(3, 1, 32, 32)  # a ramp: the value says from where
    moves = 31 * (blurred("glass_blur", images, 5) - images)[..., 8:-8]
    assert float(moves.std()) == pytest.approx(1.5, rel=0.05)
