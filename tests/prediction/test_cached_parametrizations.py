"""Within `torch.nn.utils.parametrize.cached` every change of the weights has its own parametrized weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import SWAG, Laplace
from flatbayes.training import CollectionConfig, TrainingConfig, fit

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

CONFIG = TrainingConfig(
    epochs=3, batch_size=16, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2)
)


def build(parametrization=parametrizations.orthogonal):
    torch.manual_seed(0)
    return nn.Sequential(parametrization(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


def make_data():
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize(
    "posterior", [SWAG(rank=2), Laplace("diag", "sampled", prior_precision=5.0)], ids=lambda p: type(p).__name__
)
def test_draws_differ_as_without_the_cache(posterior, vectorized):
    x, y = make_data()

    def train():
        return fit(lambda: build(parametrizations.weight_norm), (x, y), posterior, SAM(), CONFIG)

    expected = train().predict(x, 3, vectorized=vectorized).log_probs
    fitted = train()
    with parametrize.cached():
        assert torch.equal(fitted.predict(x, 3, vectorized=vectorized).log_probs, expected)


def test_both_passes_of_a_flat_step_have_their_own():
    x, y = make_data()

    def compute_gradients():
        network = build()

        def closure():
            network.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            return loss.detach()

        SAM(rho=0.5)(closure, network)()
        return torch.cat([param.grad.flatten() for param in network.parameters()])

    expected = compute_gradients()
    with parametrize.cached():
        assert torch.equal(compute_gradients(), expected)


def test_linearised_networks_have_their_own():
    x, y = make_data()
    posterior = Laplace("diag", prior_precision=5.0)
    expected = fit(build, (x, y), posterior, SAM(), CONFIG, likelihood=Categorical(3)).predict(x, 3).log_probs
    with parametrize.cached():
        fitted = fit(build, (x, y), posterior, SAM(), CONFIG, likelihood=Categorical(3))
        assert torch.equal(fitted.predict(x, 3).log_probs, expected)
