"""Sequences in memory: what a recurrent network gets of arrays of three axes, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from flatbayes import MAP, SAM, Arrays, ConstantScale, FittedPosterior, TrainingConfig, evaluate, fit
from flatbayes.core.parameter_selection import select_parameters
from flatbayes.data import Standardize
from flatbayes.data.inputs import read_inputs
from flatbayes.likelihoods import Gaussian
from flatbayes.training.trial import NetworkWarning

WINDOW, CHANNELS, HORIZON = 6, 2, 3
CONFIG = TrainingConfig(epochs=2, batch_size=16)


class Forecaster(nn.Module):
    def __init__(self, num_outputs=2 * HORIZON, *, batch_first=True):
        super().__init__()
        self.rnn, self.head = nn.GRU(CHANNELS, 4, batch_first=batch_first), nn.Linear(4, num_outputs)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Shaped(Forecaster):
    def __init__(self, input_shape):
        _, channels = input_shape
        assert channels == CHANNELS
        super().__init__()


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv1d(WINDOW, 4, 1), nn.Linear(4 * CHANNELS, 2 * HORIZON)

    def forward(self, x):
        return self.head(self.layer(x).relu().flatten(1))


class Pooled(nn.Module):
    """It takes gray images too, and then has an output for each row."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(CHANNELS, 4), nn.Linear(4, 2 * HORIZON)

    def forward(self, x):
        return self.head(self.layer(x).relu().mean(1))


def make_windows(count=48):
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(count, WINDOW + HORIZON, CHANNELS, generator=generator)
    x = series[:, :WINDOW] * torch.tensor([100.0, 0.01]) + 5
    return x, series[:, WINDOW:, 0]


@pytest.mark.parametrize("model", [Forecaster, Shaped, Pooled], ids=lambda model: model.__name__)
def test_arrays_of_three_axes_are_sequences_standardized_by_channel(model, tmp_path):
    x, y = make_windows()
    fitted = fit(model, (x, y), MAP(), SAM(), CONFIG)
    assert fitted.info["input_shape"] == [WINDOW, CHANNELS]
    standardized = fitted.transform(x)
    assert standardized.shape == x.shape
    torch.testing.assert_close(standardized.std((0, 1), correction=0), torch.ones(CHANNELS), rtol=1e-3, atol=1e-3)
    mean = fitted.predict(x).mean
    assert mean.shape == y.shape
    torch.testing.assert_close(fitted.predict(x[:1]).mean, mean[:1])
    torch.testing.assert_close(fitted.predict(x[:, None]).mean, mean)  # as data splits store them
    loaded = FittedPosterior.load(fitted.save(tmp_path / "a"), lambda: fitted.states[0].model)
    assert torch.equal(loaded.predict(x).mean, mean)
    torch.testing.assert_close(fitted.compile(1)(x)["mean"], mean, check_dtype=False)


def test_splits_of_sequences_are_evaluated():
    x, y = make_windows()
    splits = Arrays(x[:32], y[:32], val=(x[32:40], y[32:40]), test=(x[40:], y[40:])).load(seed=0)
    fitted = fit(Forecaster, splits, MAP(), SAM(), CONFIG)
    assert evaluate(fitted, splits.test).metrics == evaluate(fitted, (x[40:], y[40:])).metrics


def test_convolutions_have_channels_first():
    fitted = fit(Convolution, make_windows(), MAP(), SAM(), CONFIG)
    assert fitted.transform.mean.shape == (WINDOW, 1)


def test_gray_images_stay_images():
    x, y = make_windows()
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.LazyLinear(2 * HORIZON))
    assert fit(network, (x, y), MAP(), SAM(), CONFIG).info["input_shape"] == [1, WINDOW, CHANNELS]


def test_an_error_of_a_recurrent_network_is_that_for_sequences():
    with pytest.raises(ValueError, match="Set num_targets to the number of targets"):
        fit(ConstantScale(Forecaster(HORIZON)), make_windows(), MAP(), SAM(), CONFIG)


def test_layers_with_time_first_that_mix_examples_are_warned_of():
    with pytest.warns(NetworkWarning, match="set batch_first=True"):
        fit(Forecaster(batch_first=False), make_windows(), MAP(), SAM(), CONFIG)


def test_targets_of_several_axes_are_to_be_flattened():
    x, y = make_windows()
    with pytest.raises(ValueError, match=r"targets\.reshape\(len\(targets\), -1\)"):
        fit(Forecaster, (x, y[..., None]), MAP(), SAM(), CONFIG)
    with pytest.raises(ValueError, match=r"targets\.reshape\(len\(targets\), -1\)"):
        Gaussian.fit(y[..., None])
    with pytest.raises(ValueError, match=r"targets\.reshape\(len\(targets\), -1\)"):
        Gaussian.fit(y).prepare_targets(y[..., None])
    with pytest.raises(ValueError, match=r"targets\.reshape\(len\(targets\), -1\)"):
        Gaussian.fit(y).check_outputs(torch.zeros(4, HORIZON, 2))


def test_sequences_of_other_channels_are_refused():
    scale = Standardize.fit(torch.randn(5, WINDOW, CHANNELS), channel_axis=2)
    assert scale(torch.randn(3, WINDOW + 1, CHANNELS)).shape == (3, WINDOW + 1, CHANNELS)
    with pytest.raises(ValueError, match=r"2 channels, \[n, length, channels\]"):
        scale(torch.randn(3, WINDOW, CHANNELS + 1))


def test_coordinates_of_a_plot_are_one_for_each_example():
    predictive = Gaussian(HORIZON, (0.0,) * HORIZON, (1.0,) * HORIZON).predictive([torch.zeros(4, 2 * HORIZON)])
    with pytest.raises(ValueError, match="one horizontal coordinate for each of 4 examples"):
        predictive.plot(torch.zeros(4, HORIZON))


def test_biases_of_recurrent_layers_are_biases():
    assert list(select_parameters(Forecaster(), "biases", "params")) == [
        "rnn.bias_ih_l0",
        "rnn.bias_hh_l0",
        "head.bias",
    ]


def test_sequences_of_an_npz_file_have_the_shape_of_the_training(tmp_path):
    x, _ = make_windows(10)
    np.savez(tmp_path / "data.npz", x=x.numpy())
    ((_, inputs),) = read_inputs(tmp_path / "data.npz", (WINDOW, CHANNELS), ())
    assert torch.equal(inputs, x)
    with pytest.raises(ValueError, match=r"takes inputs of the shape \(6, 3\), and those in .* have \(1, 6, 2\)"):
        list(read_inputs(tmp_path / "data.npz", (WINDOW, 3), ()))
