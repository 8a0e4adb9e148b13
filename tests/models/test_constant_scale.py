"""Networks of means with a constant noise."""

import pytest
import torch
from torch import nn

from flatbayes import MAP, MLP, ConstantScale, FittedPosterior, Gaussian, TrainingConfig, fit
from flatbayes.data.checks import DataWarning

NO_TRAINING = TrainingConfig(epochs=0)


class WithFeatures(nn.Linear):
    """Returns a dictionary."""

    def forward(self, x):
        return {"logits": super().forward(x), "features": x}


class OneAxis(nn.Linear):
    """Returns one number for each example."""

    def forward(self, x):
        return super().forward(x)[:, 0]


def make_data(num_targets=1):
    """Targets far from 0 that a linear network explains, up to noise with a standard deviation of 2."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 3, generator=generator)
    network = nn.Linear(3, num_targets)
    with torch.no_grad():
        network.weight.copy_(20 * torch.ones(num_targets, 3))
        network.bias.fill_(500.0)
        targets = network(inputs) + 2 * torch.randn(100, num_targets, generator=generator)
    return network, inputs, targets


@pytest.mark.parametrize(
    "network", [nn.Linear(3, 1), OneAxis(3, 1), WithFeatures(3, 1)], ids=["axes", "axis", "dict"]
)
def test_the_outputs_are_the_means_and_as_many_raw_scales(network):
    inputs = torch.randn(4, 3)
    model = ConstantScale(network)
    nn.init.constant_(model.raw_scale, 0.3)
    outputs = model(inputs)
    assert torch.equal(outputs[:, 0], nn.functional.linear(inputs, network.weight, network.bias)[:, 0])
    assert outputs[:, 1].tolist() == [pytest.approx(0.3)] * 4


@pytest.mark.parametrize("num_targets", [1, 2])
def test_a_trained_network_keeps_its_means_and_starts_at_the_noise_of_its_residuals(num_targets, tmp_path):
    network, inputs, targets = make_data(num_targets)
    with pytest.warns(DataWarning, match="in their own unit"):
        fitted = fit(ConstantScale(network, num_targets), (inputs, targets), MAP(), config=NO_TRAINING)
    predictive, means = fitted.predict(inputs), network(inputs).detach()
    torch.testing.assert_close(predictive.mean.reshape(means.shape), means.double())
    residuals = (targets - means).square().mean(0).sqrt().detach().double()
    torch.testing.assert_close(predictive.std[0].reshape(-1), residuals, rtol=1e-4, atol=0.0)
    loaded = FittedPosterior.load(fitted.save(tmp_path), ConstantScale(nn.Linear(3, num_targets), num_targets))
    assert torch.equal(loaded.predict(inputs).std, predictive.std)


def test_trained_raw_scales_are_kept():
    network, inputs, targets = make_data()
    model = ConstantScale(network)
    nn.init.constant_(model.raw_scale, 2.0)
    with pytest.warns(DataWarning, match="in their own unit"):
        fitted = fit(model, (inputs, targets), MAP(), config=NO_TRAINING)
    assert fitted.likelihood.initial_std == ()


def test_a_network_of_means_alone_is_answered_with_it():
    _, inputs, targets = make_data(2)
    with pytest.raises(ValueError, match=r"keeps them: ConstantScale\(network, 2\)\."):
        fit(nn.Linear(3, 2), (inputs, targets), MAP(), config=NO_TRAINING, likelihood=Gaussian.fit(targets))


def test_wrong_numbers_of_targets():
    with pytest.raises(ValueError, match="num_targets must be at least 1, got 0"):
        ConstantScale(nn.Linear(3, 1), 0)
    with pytest.raises(
        ValueError, match=r"outputs of shape \(5, 2\), and ConstantScale needs a mean for each target"
    ):
        ConstantScale(nn.Linear(3, 2))(torch.randn(5, 3))


def test_weights_of_an_mlp_have_the_names_of_earlier_artefacts():
    names = set(MLP((8,), 2, hidden=(5,), constant_scale=True).state_dict())
    assert {"layers.4.mean.weight", "layers.4.mean.bias", "layers.4.raw_scale"} < names
