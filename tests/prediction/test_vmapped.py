"""Vectorised predictions against one call per network."""

import pytest
import torch
from torch import nn

from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.varying_layer import find_varying_layers
from support import POSTERIORS, assert_same, batch, named, network, snapshot, train


def fit_posterior(posterior):
    states = [train(posterior, Plain(), model=network())[0] for _ in range(posterior.num_members)]
    for state in states:
        state.model.eval()
    return FittedPosterior(posterior, states, Categorical(3), statistics_inputs=[batch(k)[0] for k in range(2)])


def draws_are_weights(fitted):
    """Whether a draw is the model of the state, entirely in eval mode."""
    with fitted.sampled_network(fitted.sample_ids(1)[0]) as net:
        return net is fitted.states[0].model and not any(module.training for module in net.modules())


@pytest.mark.parametrize("posterior", POSTERIORS, ids=named(POSTERIORS))
def test_vectorized_equals_one_call_per_network(posterior):
    fitted, x = fit_posterior(posterior), batch(5, size=4)[0]
    for state in fitted.states:
        state.model.train()
    before = [snapshot(state.model) for state in fitted.states]
    expected = fitted.predict(x, 6, batch_size=3, keep_members=True, vectorized=False)
    if not draws_are_weights(fitted) and find_varying_layers(fitted) is None:
        with pytest.raises(ValueError, match="more than weights"):
            fitted.predict(x, 6, vectorized=True)
        assert torch.equal(fitted.predict(x, 6, batch_size=3).log_probs, expected.log_probs)
        return
    for vectorized in (True, None):
        predictive = fitted.predict(x, 6, batch_size=3, keep_members=True, vectorized=vectorized)
        torch.testing.assert_close(predictive.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(predictive.member_probs, expected.member_probs, rtol=1e-4, atol=1e-5)
    for state, then in zip(fitted.states, before, strict=True):
        assert_same(snapshot(state.model), then)


def test_posteriors_whose_draws_cannot_be_stacked():
    refused = {type(p).__name__ for p in POSTERIORS if not draws_are_weights(fit_posterior(p))}
    assert refused == {"MCDropout", "Laplace"}  # masks; linearised, unless of curvature at sampled labels


def test_networks_are_drawn_once_for_many_calls(monkeypatch):
    fitted, x = fit_posterior(SWAG(rank=3)), batch(5, size=3)[0]
    first = fitted.predict(x, 4).log_probs
    monkeypatch.setattr(SWAG, "draw", lambda *_: pytest.fail("drawn again"))
    assert torch.equal(fitted.predict(x, 4).log_probs, first)


def test_a_stack_is_rebuilt_after_a_change_of_the_state():
    fitted, x = fit_posterior(SWAG(rank=3)), batch(5, size=3)[0]
    first = fitted.predict(x, 4).log_probs
    fitted.states[0].statistics["mean"].mul_(3)
    fitted.norm_statistics.clear()
    second = fitted.predict(x, 4)
    assert not torch.allclose(second.log_probs, first)
    torch.testing.assert_close(
        second.log_probs, fitted.predict(x, 4, vectorized=False).log_probs, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(fitted.predict(x, 4, seed=1).log_probs, second.log_probs)
    assert len(fitted.predict(x, 7, keep_members=True).member_probs) == 7


class DataDependentNetwork(nn.Module):
    """Control flow that depends on values, which vmap cannot trace."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        out = self.layer(x)
        return out if out.sum().item() > 0 else out + 1


def test_a_model_that_vmap_cannot_trace_is_called_per_network():
    posterior = MAP()
    fitted = FittedPosterior(posterior, [posterior.init(DataDependentNetwork(), None, 5)], Categorical(3))
    x = torch.ones(2, 2)
    assert torch.equal(fitted.predict(x).log_probs, fitted.predict(x, vectorized=False).log_probs)
    with pytest.raises(ValueError, match="vmap"):
        fitted.predict(x, vectorized=True)


def test_invalid_inputs_have_the_error_of_a_plain_call(monkeypatch):
    posterior = MAP()
    fitted = FittedPosterior(posterior, [posterior.init(nn.Linear(2, 3), None, 5)], Categorical(3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fitted.predict(torch.ones(2, 5))
    monkeypatch.setattr(MAP, "draw", lambda *_: pytest.fail("drawn again"))
    assert fitted.predict(torch.ones(2, 2)).mean.shape == (2, 3)  # and the stack is still there


class FusedAttention(nn.Module):
    """Attention by the fused kernel of torch."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(64, 3)

    def forward(self, x):
        query, key, value = self.project(x.flatten(1).view(len(x), 1, 8, 8)).chunk(3, dim=-1)
        return self.head(nn.functional.scaled_dot_product_attention(query, key, value).flatten(1))


def test_fused_attention_is_vectorized_without_a_warning():
    state, _ = train(SWAG(rank=2), Plain(), model=FusedAttention())
    fitted, x = FittedPosterior(SWAG(rank=2), [state], Categorical(3)), batch(5, size=4)[0]
    expected = fitted.predict(x, 3, vectorized=False).log_probs
    torch.testing.assert_close(fitted.predict(x, 3, vectorized=True).log_probs, expected, rtol=1e-4, atol=1e-5)
