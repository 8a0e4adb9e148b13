"""Layers of loralib, which merge their adapter into the frozen weight in eval mode, for every posterior."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes import (
    IVON,
    MAP,
    SAM,
    SGLD,
    SGVB,
    SWAG,
    TFB,
    Categorical,
    FittedPosterior,
    Laplace,
    TrainingConfig,
    fit,
)
from flatbayes.posteriors import Posterior

CONFIG = TrainingConfig(epochs=3, batch_size=16).with_options(
    **{"collection.start_fraction": 0.0, "collection.snapshots_per_epoch": 2}
)


class AdaptedLinear(nn.Linear):
    """The layer of loralib, `loralib.Linear`, in a few lines."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.lora_A = nn.Parameter(torch.randn(2, num_inputs))
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, 2))
        self.scaling, self.merged, self.merge_weights = 0.5, False, True
        self.weight.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.merge_weights and self.merged is mode:
            self.weight.data += (1 - 2 * mode) * self.scaling * self.lora_B @ self.lora_A
            self.merged = not mode
        return self

    def forward(self, x):
        adapted = 0 if self.merged else self.scaling * x @ self.lora_A.T @ self.lora_B.T
        return super().forward(x) + adapted


def build():
    torch.manual_seed(0)
    return nn.Sequential(AdaptedLinear(6, 8), nn.ReLU(), AdaptedLinear(8, 3))


def make_data():
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize(
    "posterior",
    [MAP(), SWAG(rank=2), Laplace("diag", prior_precision=10.0), SGLD(), SGVB(), IVON(), TFB()],
    ids=lambda posterior: type(posterior).__name__,
)
def test_frozen_weights_stay_and_draws_differ(posterior: Posterior, tmp_path):
    x, y = make_data()
    fitted = fit(build, (x, y), posterior, SAM(), CONFIG, val=(x[:16], y[:16]), likelihood=Categorical(3))
    predictive = fitted.predict(x, 3)
    for layer, original in zip(fitted.states[0].model[::2], build()[::2], strict=True):
        assert torch.equal(layer.weight, original.weight)
    assert bool((predictive.mutual_information > 0).any()) is posterior.stochastic
    fitted.save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, build)
    assert torch.equal(loaded.predict(x, 3).log_probs, predictive.log_probs)


def test_a_merged_network_is_refused_with_advice():
    network = build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    F.cross_entropy(network(make_data()[0]), make_data()[1]).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"The adapter of 0 is merged .* train\(\) on a model of loralib"):
        fit(network.eval(), make_data(), SWAG(rank=2), SAM(), CONFIG, likelihood=Categorical(3))
    fit(network.train(), make_data(), SWAG(rank=2), SAM(), CONFIG, likelihood=Categorical(3))
