import pytest
import torch

from flatbayes.data import Standardize


def test_images_are_standardised_per_channel_over_all_pixels():
    inputs = torch.randint(0, 256, (2500, 3, 4, 5), dtype=torch.uint8)
    standardize = Standardize.fit(inputs)
    assert standardize.mean.shape == standardize.std.shape == (3, 1, 1)
    flat = inputs.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(standardize.mean.flatten(), flat.mean(1).float())
    torch.testing.assert_close(standardize.std.flatten(), flat.std(1, correction=0).float())
    outputs = standardize(inputs)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.var((0, 2, 3), correction=0), torch.ones(3))


def test_features_are_standardised_one_by_one_even_far_from_zero():
    inputs = torch.randn(3000, 2) * torch.tensor([1.0, 10.0]) + torch.tensor([1e5, -3.0])
    standardize = Standardize.fit(inputs)
    assert standardize.mean.shape == (2,)
    torch.testing.assert_close(standardize.std, inputs.double().std(0, correction=0).float())


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_feature_has_standard_deviation_one(value):
    inputs = torch.full((1500, 1), value)
    standardize = Standardize.fit(inputs)
    assert standardize.std.item() == 1
    assert standardize(inputs).abs().max() == 0


def test_other_channels_or_features_are_refused():
    images = Standardize.fit(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"Expected inputs of 3 channels.* got the shape \(2, 1, 4, 4\)"):
        images(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"got the shape \(2, 3\)"):
        images(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"Expected inputs of 5 features.* got the shape \(2, 4\)"):
        Standardize.fit(torch.zeros(2, 5))(torch.zeros(2, 4))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        Standardize.fit(torch.zeros(0, 3))
