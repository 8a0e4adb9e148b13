"""Monte Carlo dropout: masks, rates, and models without dropout."""

import pytest
import torch
from torch import nn

from flatbayes.posteriors import MCDropout
from flatbayes.posteriors.mc_dropout import find_dropout_modules

KINDS = [
    (nn.Dropout, (4, 6)),
    (nn.Dropout1d, (4, 6, 5)),
    (nn.Dropout2d, (4, 6, 5, 5)),
    (nn.Dropout3d, (4, 6, 3, 3, 3)),
    (nn.AlphaDropout, (4, 6)),
    (nn.FeatureAlphaDropout, (4, 6, 5, 5)),
]


@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_dropout_of_any_dimension(kind, shape):
    model = nn.Sequential(kind(0.5), nn.Flatten(), nn.LazyLinear(2))
    x = torch.ones(shape)
    model(x)
    state = MCDropout().init(model, None, 10)
    model.eval()
    with MCDropout().draw(state, torch.Generator().manual_seed(0)) as network:
        first = network(x)
    with MCDropout().draw(state, torch.Generator().manual_seed(1)) as network:
        assert not torch.equal(network(x), first)
        assert network[0].training


def test_refuses_a_model_without_dropout():
    with pytest.raises(ValueError, match="Linear has none. Add torch.nn.Dropout"):
        MCDropout().init(nn.Linear(2, 2), None, 10)


def test_refuses_zero_rates_unless_a_rate_is_given():
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has rate 0"):
        MCDropout().init(model, None, 10)
    MCDropout(rate=0.2).init(model, None, 10)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_an_invalid_rate(rate):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        MCDropout(rate=rate)


def test_the_rate_holds_during_steps_and_draws_only():
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2))
    posterior = MCDropout(rate=0.25)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.1), 10)
    seen = []

    def closure():
        seen.append([m.p for m in find_dropout_modules(model)])
        loss = model(torch.ones(3, 2)).sum()
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)
    with posterior.draw(state, torch.Generator()) as network:
        seen.append([m.p for m in find_dropout_modules(network)])
    assert seen == [[0.25], [0.25]]
    assert model[0].p == 0.0


def test_drawn_masks_have_the_rate():
    model = nn.Sequential(nn.Dropout(0.3), nn.Identity())
    model.weight = nn.Parameter(torch.ones(1))
    state = MCDropout().init(model, None, 10)
    with MCDropout().draw(state, torch.Generator().manual_seed(0)) as network:
        dropped = (network(torch.ones(200, 100)) == 0).double().mean().item()
    assert dropped == pytest.approx(0.3, abs=5 * (0.21 / 20_000) ** 0.5)
