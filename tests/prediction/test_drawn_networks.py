"""Drawn networks that are kept: vectorised predictions against one call per network, and repeated predictions."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SGVB, SWAG
from flatbayes.prediction import FittedPosterior, drawn_networks
from flatbayes.prediction.sampling import NetworkSampler
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


@pytest.mark.parametrize("posterior", POSTERIORS, ids=named(POSTERIORS))
def test_a_repeated_prediction_has_the_same_bits_and_draws_nothing(posterior, monkeypatch):
    fitted, x = fit_posterior(posterior), batch(5, size=20)[0]
    is_kept = posterior.stochastic and draws_are_weights(fitted)
    with monkeypatch.context() as patch:
        patch.setattr(drawn_networks, "MAX_KEPT_ELEMENTS", 0)
        expected = fitted.predict(x, 4, batch_size=8, vectorized=False).log_probs
    before = [snapshot(state.model) for state in fitted.states]
    assert torch.equal(fitted.predict(x, 4, batch_size=8, vectorized=False).log_probs, expected)
    if is_kept:
        monkeypatch.setattr(NetworkSampler, "_draw", lambda *_: pytest.fail("drawn again"))
    assert torch.equal(fitted.predict(x, 4, batch_size=8, vectorized=False).log_probs, expected)
    for state, then in zip(fitted.states, before, strict=True):
        assert_same(snapshot(state.model), then)


@pytest.mark.parametrize("posterior", [SWAG(rank=3), SGVB(), MAP()], ids=lambda posterior: type(posterior).__name__)
def test_weights_that_were_made_in_inference_mode(posterior, tmp_path):
    """torch counts no writes to their memory, also where a later draw points the parameter to other memory."""
    fitted, x = fit_posterior(posterior), batch(5, size=9)[0]
    expected = fitted.predict(x, 4).log_probs
    fitted.save(tmp_path / "fitted")
    with torch.inference_mode():
        loaded = FittedPosterior.load(tmp_path / "fitted", model=network())
        for _ in range(2):
            torch.testing.assert_close(loaded.predict(x, 4).log_probs, expected)


def test_networks_beyond_the_budget_are_drawn_again(monkeypatch):
    fitted, x = fit_posterior(SWAG(rank=3)), batch(5, size=20)[0]
    model = fitted.states[0].model
    num_elements = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    draws = []
    draw = NetworkSampler._draw
    monkeypatch.setattr(NetworkSampler, "_draw", lambda self, key: draws.append(key) or draw(self, key))
    for budget, num_draws in ((4 * num_elements, 4), (4 * num_elements - 1, 8)):
        monkeypatch.setattr(drawn_networks, "MAX_KEPT_ELEMENTS", budget)
        fitted, draws[:] = copy.deepcopy(fitted), []
        fitted.predict(x, 4)
        fitted.predict(x[:10], 4)
        assert len(draws) == num_draws


def replace_statistic(fitted):
    fitted.states[0].statistics["mean"] = fitted.states[0].statistics["mean"] * 2


def replace_values(fitted):
    statistics = fitted.states[0].statistics
    statistics["mean"].data = statistics["mean"] * 2


def replace_posterior(fitted):
    fitted.posterior = replace(fitted.posterior, scale=3.0)


def replace_layer(fitted):
    fitted.states[0].model[-1] = nn.Linear(*fitted.states[0].model[-1].weight.shape[::-1])


def replace_state(fitted):
    with torch.enable_grad():
        fitted.states = fit_posterior(SWAG(rank=3)).states


CHANGES = {
    "statistic written": lambda fitted: fitted.states[0].statistics["mean"].mul_(2),
    "statistic replaced": replace_statistic,
    "statistic with other memory": replace_values,
    "buffer written": lambda fitted: [b.add_(1.0) for b in fitted.states[0].model.buffers() if b.is_floating_point()],
    "posterior": replace_posterior,
    "draw rule": lambda fitted: setattr(fitted, "draw_rule", 1),
    "state": replace_state,
    "layer": replace_layer,
}


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_networks_are_drawn_from_is_noticed(change, vectorized):
    fitted, x = fit_posterior(SWAG(rank=3)), batch(5, size=6)[0]
    first = fitted.predict(x, 4, vectorized=vectorized).log_probs
    with torch.no_grad():
        torch.manual_seed(0)
        CHANGES[change](fitted)
    fitted.norm_statistics.clear()
    changed = fitted.predict(x, 4, vectorized=vectorized).log_probs
    fitted._runner.drawn_networks = None
    assert torch.equal(fitted.predict(x, 4, vectorized=vectorized).log_probs, changed)
    if change not in ("buffer written", "layer", "state"):  # SWAG sets all weights, and statistics are re-estimated
        assert not torch.allclose(changed, first)


class UnusualNetwork(nn.Module):
    """Random numbers in eval mode; optionally a forward pass that changes weights, or one that counts its calls."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(2, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.kind == "writes weights" and not self.training:
            with torch.no_grad():
                self.layer.weight.mul_(0.5)
        if self.kind == "counts":
            self.calls += 1
        return nn.functional.dropout(self.layer(x), 0.5, training=True)


@pytest.mark.parametrize("kind", ["random", "writes weights", "counts"])
def test_networks_with_side_effects_predict_the_same_again(kind, monkeypatch):
    posterior = SWAG(rank=2)
    state = posterior.init(UnusualNetwork(kind), None, 5)
    for k in range(3):
        with torch.no_grad():
            state.model.layer.weight.add_(k)
        posterior.collect(state)
    fitted, x = FittedPosterior(posterior, [state], Categorical(3)), torch.ones(5, 2)
    with monkeypatch.context() as patch:
        patch.setattr(drawn_networks, "MAX_KEPT_ELEMENTS", 0)
        expected = fitted.predict(x, 3, batch_size=2, vectorized=False).log_probs
    for _ in range(3):
        assert torch.equal(fitted.predict(x, 3, batch_size=2, vectorized=False).log_probs, expected)
    assert state.model.calls == 4 * 3 * 3 * (kind == "counts")


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
