"""Predictions of networks that differ in their last layer only, against one call per network."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.linear_head import extract_features
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical, Gaussian
from flatbayes.posteriors import IVON, SGVB, SWAG, Ensemble, Laplace
from flatbayes.prediction import FittedPosterior, varying_layer
from flatbayes.prediction.varying_layer import LayerDraws
from support import assert_same, batch, network, snapshot, train

POSTERIORS = {
    "linearised": Laplace(tune="evidence"),
    "sampled": Laplace("last_layer", "sampled", tune="evidence"),
    "kron": Laplace("last_layer_kron", tune="evidence"),
    "ensemble": Ensemble(Laplace(prior_precision=1.0), size=2),
    "SWAG": SWAG(rank=3, params="last_layer"),
    "SGVB": SGVB(params="last_layer"),
    "IVON": IVON(params="last_layer"),
}
SAME = {"rtol": 1e-4, "atol": 1e-6}


def fit_posterior(posterior, make_model=network, likelihood=None):
    models = [make_model() for _ in range(posterior.num_members)]
    states = [train(posterior, Plain(), model=model)[0] for model in models]
    for state in states:
        state.model.eval()
    return FittedPosterior(
        posterior, states, likelihood or Categorical(3), statistics_inputs=[batch(k)[0] for k in range(2)]
    )


def count_calls(fitted):
    counts = [0]

    def count(*_):
        counts[0] += 1

    for state in fitted.states:
        state.model.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS)
@pytest.mark.parametrize("size", [1, 20])
def test_predictions_are_those_of_one_call_per_network_with_one_call(posterior, size):
    fitted, x = fit_posterior(posterior), batch(5, size=size)[0]
    before = [snapshot(state.model) for state in fitted.states]
    expected = fitted.predict(x, 6, batch_size=8, keep_members=True, vectorized=False)
    counts = count_calls(fitted)
    for vectorized in (None, True):
        predictive = fitted.predict(x, 6, batch_size=8, keep_members=True, vectorized=vectorized)
        torch.testing.assert_close(predictive.member_probs, expected.member_probs, **SAME)
    assert counts[0] == 2 * len(fitted.states) * -(-size // 8)
    for state, then in zip(fitted.states, before, strict=True):
        assert_same(snapshot(state.model), then)


@pytest.mark.parametrize("name", ["linearised", "SWAG"])
def test_layers_are_drawn_once_for_many_calls_and_again_after_a_change(name, monkeypatch):
    fitted, x = fit_posterior(POSTERIORS[name]), batch(5, size=9)[0]
    calls, original = [], varying_layer.draw_layer
    monkeypatch.setattr(varying_layer, "draw_layer", lambda *args: calls.append(1) or original(*args))
    first = fitted.predict(x, 4).log_probs
    assert torch.equal(fitted.predict(x, 4).log_probs, first)
    assert len(calls) == 1
    statistic = "scale" if name == "linearised" else "sum_squares"
    fitted.states[0].statistics[statistic].mul_(3)
    second = fitted.predict(x, 4)
    assert not torch.allclose(second.log_probs, first)
    torch.testing.assert_close(second.log_probs, fitted.predict(x, 4, vectorized=False).log_probs, **SAME)
    assert len(fitted.predict(x, 7, keep_members=True).member_probs) == 7
    assert not torch.allclose(fitted.predict(x, 4, seed=1).log_probs, second.log_probs)


def test_many_draws_are_made_in_blocks(monkeypatch):
    fitted, x = fit_posterior(POSTERIORS["ensemble"]), batch(5, size=9)[0]
    expected = fitted.predict(x, 10, keep_members=True).member_probs
    monkeypatch.setattr(varying_layer, "MAX_KEPT_ELEMENTS", 3 * fitted.states[0].model[-1].weight.numel())
    fitted._runner.layer_draws = None
    torch.testing.assert_close(fitted.predict(x, 10, keep_members=True).member_probs, expected)
    assert not fitted._runner.layer_draws.weights


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_tensor_of_the_layer_does_not_vary(frozen):
    def make_model():
        model = network()
        model[-1].get_parameter(frozen).requires_grad_(False)
        return model

    fitted, x = fit_posterior(POSTERIORS["linearised"], make_model), batch(5, size=9)[0]
    expected = fitted.predict(x, 6, keep_members=True, vectorized=False).member_probs
    torch.testing.assert_close(fitted.predict(x, 6, keep_members=True).member_probs, expected, **SAME)


class Net(nn.Module):
    """A linear layer in the middle of an operation that decides whether its inputs can be shared."""

    def __init__(self, finish):
        super().__init__()
        self.trunk, self.head, self.finish = nn.Linear(4, 3), nn.Linear(3, 3), finish

    def forward(self, x):
        return self.finish(self, torch.tanh(self.trunk(x)))


SHARED = {"reshaped": lambda net, h: net.head(h[:, None])[:, 0].view(-1, 3)}
NOT_SHARED = {
    "in place": lambda net, h: net.head(h).relu_(),
    "not last": lambda net, h: net.head(h).log_softmax(-1),
    "called twice": lambda net, h: net.head(net.head(h)),
    "weight used elsewhere": lambda net, h: net.head(h @ net.head.weight),
    "by keyword": lambda net, h: net.head(input=h),
    "random": lambda net, h: net.head(F.dropout(h, 0.5)),
    "some outputs": lambda net, h: net.head(h)[:, :2],
}


@pytest.mark.parametrize("name", [*SHARED, *NOT_SHARED])
def test_features_are_shared_only_if_the_outputs_are_those_of_the_layer(name):
    torch.manual_seed(0)
    net = Net((SHARED | NOT_SHARED)[name]).eval()
    x, y = torch.randn(20, 4), torch.randint(0, 2, (20,))
    posterior = Laplace(prior_precision=1.0, predictive="linearised")
    state = posterior.init(net, None, 20)
    posterior.finalize(state, [(x, y)], F.cross_entropy)
    fitted = FittedPosterior(posterior, [state], Categorical(2 if name == "some outputs" else 3))
    expected = fitted.predict(x, 5, keep_members=True, vectorized=False).member_probs
    torch.testing.assert_close(fitted.predict(x, 5, keep_members=True).member_probs, expected, **SAME)
    assert fitted._runner.can_share_features == (name in SHARED)


def test_a_tied_layer_and_a_layer_with_a_hook_are_not_shared():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).eval()
    with extract_features(net, net[2]) as extractor:
        assert extractor.compute(torch.ones(2, 3))[1].shape == (2, 3)
    net[0].weight = net[2].weight
    with extract_features(net, net[2]) as extractor:
        assert extractor.compute(torch.ones(2, 3))[1] is None
    net[2].register_forward_hook(lambda *args: 2 * args[2])
    with extract_features(net, net[2]) as extractor:
        assert extractor is None
    assert all(param.requires_grad for param in net.parameters())


@pytest.mark.parametrize("base", [Laplace, SWAG, SGVB])
def test_draws_of_a_subclass_with_another_draw_are_its_own(base):
    @dataclass(frozen=True)
    class Twice(base):
        @contextmanager
        def draw(self, state, generator):
            with super().draw(state, generator) as drawn:
                yield nn.Sequential(drawn, Scale())

    posterior = Twice(prior_precision=1.0) if base is Laplace else Twice(params="last_layer")
    fitted, x = fit_posterior(posterior), batch(5, size=9)[0]
    predictive, expected = (fitted.predict(x, 4, keep_members=True, vectorized=flag) for flag in (None, False))
    assert torch.equal(predictive.member_probs, expected.member_probs)


class Scale(nn.Module):
    def forward(self, x):
        return 2 * x


def test_weights_that_were_made_in_inference_mode(tmp_path):
    x = batch(5, size=9)[0]
    fit_posterior(POSTERIORS["linearised"]).save(tmp_path / "fitted")
    with torch.inference_mode():
        fitted = FittedPosterior.load(tmp_path / "fitted", model=network())
        expected = fitted.predict(x, 4).mean
    torch.testing.assert_close(fitted.predict(x, 4).mean, expected)


def test_in_inference_mode_and_for_numbers():
    x, y, likelihood = torch.randn(20, 4), torch.randn(20, 1), Gaussian()
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    posterior = Laplace(prior_precision=1.0)
    state = posterior.init(net, None, 20)
    posterior.finalize(state, [(x, y)], likelihood.loss)
    fitted = FittedPosterior(posterior, [state], likelihood)
    expected = fitted.predict(x, 5, vectorized=False)
    with torch.inference_mode():
        predictive = fitted.predict(x.clone(), 5)
    assert isinstance(fitted._runner.layer_draws, LayerDraws)
    torch.testing.assert_close(predictive.mean, expected.mean, **SAME)
