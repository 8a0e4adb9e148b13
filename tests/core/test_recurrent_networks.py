"""Recurrent layers in eval mode: those of cuDNN cannot be differentiated there, so it is off where they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.certification.prior import FrozenNetwork
from flatbayes.core.network_calls import differentiable_recurrence, plain_recurrence
from flatbayes.diagnostics import LossSurface, SharpnessConfig, compute_curvature, measure_sharpness
from flatbayes.posteriors import Laplace

X, Y = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


class Recurrent(nn.Module):
    """An LSTM that notes whether cuDNN would be used in eval mode, where it has no backward pass."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
        self.fused = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.fused.append(torch.backends.cudnn.enabled)
        return self.head(self.rnn(x)[0][:, -1])


def sharpness(model):
    measure_sharpness(LossSurface(model, F.cross_entropy, [(X, Y)]), SharpnessConfig(ascent_steps=2))


def curvature(model):
    compute_curvature(LossSurface(model, F.cross_entropy, [(X, Y)]), num_eigenvalues=1, num_trace_probes=2)


def laplace(structure, predictive="sampled"):
    def fit_and_draw(model):
        posterior = Laplace(structure, predictive, prior_precision=1.0)
        state = posterior.init(model, posterior.default_optimizer, 6)
        posterior.check_model(state, [(X, Y)], F.cross_entropy)
        posterior.finalize(state, [(X, Y)], F.cross_entropy)
        if predictive == "linearised":
            with posterior.draw(state, torch.Generator().manual_seed(0)) as network, torch.no_grad():
                network(X)

    return fit_and_draw


def certificate(model):
    F.cross_entropy(FrozenNetwork(model.train(), None)(X), Y).backward()


OPERATIONS = {
    "sharpness": sharpness,
    "curvature": curvature,
    "last_layer": laplace("last_layer"),
    "diag": laplace("diag"),
    "linearised": laplace("diag", "linearised"),
    "certificate": certificate,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap, on the CPU
@pytest.mark.parametrize("operation", OPERATIONS)
def test_derivatives_in_eval_mode_do_not_use_cudnn(operation):
    model = Recurrent().eval()
    OPERATIONS[operation](model)
    assert model.fused
    assert not any(model.fused)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("context", [differentiable_recurrence, plain_recurrence])
def test_other_networks_keep_their_kernels(context):
    with context(nn.Conv2d(1, 1, 1)):
        assert torch.backends.cudnn.enabled
        assert torch.backends.mkldnn.enabled
    with context(nn.Sequential(nn.GRU(2, 2))):
        assert not torch.backends.cudnn.enabled
        assert torch.backends.mkldnn.enabled is (context is differentiable_recurrence)
    assert torch.backends.cudnn.enabled
    assert torch.backends.mkldnn.enabled
