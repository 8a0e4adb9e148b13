"""Kernels with channels innermost: when they are the default, and that values stay the same."""

from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import MAP, SAM, SWAG, FittedPosterior, fit
from flatbayes.core.networks import choose_memory_format, is_channels_last_faster
from flatbayes.models import ConvNet
from flatbayes.training import TrainingConfig


class Mixed(nn.Module):
    """Convolutions of one, two and three dimensions, a parametrization, a transposed kernel, and a 4-d parameter."""

    def __init__(self):
        super().__init__()
        self.flat, self.solid = nn.Conv1d(4, 4, 3, padding=1), nn.Conv3d(1, 1, 1)
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, x):
        x = self.up(torch.relu(self.normed(x) + self.position))
        x = self.solid(x[:, None])[:, 0]
        return self.flat(x.flatten(2)).mean(-1)


def is_channels_last(param):
    return param.is_contiguous(memory_format=torch.channels_last) and not param.is_contiguous()


def test_kernels_of_any_convolution_change_and_outputs_do_not():
    network, inputs = Mixed().double().eval(), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    params, expected = dict(network.named_parameters()), network(inputs)
    before = [buffer.clone() for buffer in network.buffers()]
    choose_memory_format(network, channels_last=True)
    assert all(param is params[name] for name, param in network.named_parameters())
    changed = {name for name, param in params.items() if param.ndim == 4 and is_channels_last(param)}
    assert changed == {"normed.parametrizations.weight.original", "up.weight"}
    torch.testing.assert_close(network(inputs), expected)
    assert all(map(torch.equal, network.buffers(), before))  # vectors of the spectral norm


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda network: network, True),
        (lambda network: network.to(torch.bfloat16), True),
        (lambda network: network.double(), False),  # a CPU has no fast convolutions for it
        (lambda network: network.half(), False),
        (lambda network: network.to("meta"), False),
        (lambda network: network[1:], False),  # large, but not in convolutions
    ],
    ids=["float32", "bfloat16", "float64", "float16", "meta", "small"],
)
def test_it_is_the_default_for_large_convolutions_on_a_cpu(change, expected):
    network = change(nn.Sequential(nn.Conv2d(1000, 1000, 1), nn.Conv2d(1000, 3, 3), nn.Linear(1000, 1000)))
    assert is_channels_last_faster(network) is expected
    choose_memory_format(network)
    assert is_channels_last(network[-2].weight) is expected


def images(num_images=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, 8, 8, generator=generator), torch.arange(num_images) % 2


@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=2)], ids=["MAP", "SWAG"])
def test_trained_and_loaded_networks_have_it_and_predict_the_same(posterior, monkeypatch, tmp_path):
    monkeypatch.setattr("flatbayes.core.networks.LARGE_SIZE", 10)
    config = TrainingConfig(epochs=2, batch_size=20)
    fitted = fit(partial(ConvNet, width=4), images(), posterior, SAM(), config)
    plain = fit(
        partial(ConvNet, width=4), images(), posterior, SAM(), config.with_options(precision={"channels_last": False})
    )
    inputs = images()[0]
    expected = fitted.predict(inputs, 4).log_probs
    torch.testing.assert_close(plain.predict(inputs, 4).log_probs, expected, rtol=0, atol=1e-3)
    loaded = FittedPosterior.load(fitted.save(tmp_path / "fitted"))
    assert torch.equal(loaded.predict(inputs, 4).log_probs, expected)
    plain_again = FittedPosterior.load(plain.save(tmp_path / "plain")).to("cpu")
    networks = [posterior.states[0].model for posterior in (fitted, loaded, plain, plain_again)]
    kernels = [[param for param in network.parameters() if param.ndim == 4][-1] for network in networks]
    assert list(map(is_channels_last, kernels)) == [True, True, False, False]


def test_a_chosen_format_is_kept(tmp_path):
    config = TrainingConfig(epochs=1, precision={"channels_last": True})  # a small network has it only on request
    fitted = fit(partial(ConvNet, width=4), images(), MAP(), SAM(), config)
    loaded = FittedPosterior.load(fitted.save(tmp_path / "fitted"))
    assert all(is_channels_last(param) for param in loaded.states[0].model.parameters() if param.ndim == 4)
