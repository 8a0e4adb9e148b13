import pytest
import torch

from flatbayes.data.corruptions import CORRUPTIONS

GRAY = torch.full((200, 3, 16, 16), 0.4)


def noisy(name, severity, images=GRAY):
    return CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "severity", "std"),
    [
        ("gaussian_noise", 1, 0.04),
        ("gaussian_noise", 5, 0.13),
        ("speckle_noise", 1, 0.4 * 0.06),
        ("speckle_noise", 5, 0.4 * 0.30),
        ("shot_noise", 1, (0.4 / 300) ** 0.5),
        ("shot_noise", 5, (0.4 / 25) ** 0.5),
    ],
)
def test_moments(name, severity, std):
    corrupted = noisy(name, severity)
    assert float(corrupted.mean()) == pytest.approx(0.4, abs=4 * std / GRAY.numel() ** 0.5)
    assert float(corrupted.std()) == pytest.approx(std, rel=0.02)


def test_shot_noise_counts_photons():
    counts = noisy("shot_noise", 3) * 80
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("severity", "rate"), [(1, 0.01), (5, 0.11)])
def test_impulse_noise_has_its_rate(severity, rate):
    corrupted = noisy("impulse_noise", severity)
    assert corrupted.unique().tolist() == pytest.approx([0, 0.4, 1])
    error = 5 * (rate / 2 / GRAY.numel()) ** 0.5
    assert float((corrupted == 0).double().mean()) == pytest.approx(rate / 2, abs=error)
    assert float((corrupted == 1).double().mean()) == pytest.approx(rate / 2, abs=error)


def test_black_has_no_shot_and_no_speckle():
    black = torch.zeros(2, 1, 4, 4)
    for name in ("shot_noise", "speckle_noise"):
        assert torch.equal(noisy(name, 5, black), black)
