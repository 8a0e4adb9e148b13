"""A compiled module against the predictions of its posterior."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes.core.buffers import preserve_buffers
from flatbayes.data import Standardize
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Bernoulli, Categorical, Custom, Gaussian
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.prediction import FittedPosterior
from support import POSTERIORS, assert_same, batch, named, network, snapshot, train


def fit_posterior(posterior, model=network):
    states = [train(posterior, Plain(), model=model())[0] for _ in range(posterior.num_members)]
    for state in states:
        state.model.eval()
    inputs = [batch(k)[0] for k in range(2)]
    transform = Standardize.fit(torch.cat(inputs))
    return FittedPosterior(posterior, states, Categorical(3), transform, inputs, {"input_shape": [1, 8, 8]})


def make_regression_posterior(num_targets=1):
    """An ensemble with very different members, for targets with a location and scale."""
    torch.manual_seed(3)
    location, scale = tuple(range(100, 100 + num_targets)), tuple(range(7, 7 + num_targets))
    posterior = Ensemble(size=3)
    states = [posterior.init(MLP((4,), 2 * num_targets, (8,)).eval(), None, 10) for _ in range(3)]
    info = {"input_shape": [4]}
    return FittedPosterior(posterior, states, Gaussian(num_targets, location, scale), info=info)


def expected_refusal(fitted):
    """Error message for draws that are more than weights, else None."""
    posterior = fitted.posterior
    if isinstance(posterior, MCDropout):
        return "are masks.*Distil"
    if (
        isinstance(posterior, Laplace)
        and posterior.predictive == "linearised"
        and posterior.structure not in (None, "last_layer")
    ):
        return "linearised.*predictive='sampled', or distil"
    return None


@pytest.mark.parametrize("posterior", POSTERIORS, ids=named(POSTERIORS))
def test_equals_predict_and_changes_nothing(posterior):
    fitted, x = fit_posterior(posterior), batch(5)[0]
    before = [snapshot(state.model) for state in fitted.states]
    message = expected_refusal(fitted)
    if message:
        with pytest.raises(ValueError, match=message):
            fitted.compile(3)
    else:
        module = fitted.compile(3, seed=4)
        expected, tensors = fitted.predict(x, 3, seed=4), module(x)
        assert list(tensors) == ["mean", "entropy", "mutual_information"]
        for name, values in tensors.items():
            torch.testing.assert_close(values, getattr(expected, name).float(), rtol=1e-5, atol=1e-6)
        assert not any(tensor.requires_grad for tensor in module.parameters())
    for state, then in zip(fitted.states, before, strict=True):
        assert_same(snapshot(state.model), then)


def test_another_seed_and_another_number_are_other_networks():
    fitted, x = fit_posterior(SWAG(rank=3)), batch(5)[0]
    first = fitted.compile(3)(x)["mean"]
    assert torch.equal(fitted.compile(3)(x)["mean"], first)
    assert not torch.allclose(fitted.compile(3, seed=1)(x)["mean"], first)
    assert len(fitted.compile(4).networks) == 4
    with pytest.raises(ValueError, match="at least 1 draw"):
        fitted.compile(0)


@pytest.mark.parametrize("num_targets", [1, 2])
def test_moments_are_in_the_unit_of_the_targets(num_targets):
    fitted = make_regression_posterior(num_targets)
    x = torch.randn(9, 4)
    expected, tensors = fitted.predict(x), fitted.compile()(x)
    assert list(tensors) == ["mean", "std", "epistemic_std"]
    moments = {"mean": expected.mean, "std": expected.std, "epistemic_std": expected.epistemic.sqrt()}
    for name, values in tensors.items():
        assert values.shape == expected.mean.shape
        torch.testing.assert_close(values, moments[name].float(), rtol=1e-5, atol=1e-4)
    assert float(tensors["mean"].mean()) > 50


@pytest.mark.parametrize("num_labels", [1, 5])
def test_labels_have_their_probabilities_and_sums_of_uncertainty(num_labels):
    torch.manual_seed(3)
    posterior = Ensemble(size=3)
    states = [posterior.init(MLP((4,), num_labels, (8,)).eval(), None, 10) for _ in range(3)]
    fitted = FittedPosterior(posterior, states, Bernoulli(num_labels), info={"input_shape": [4]})
    x = 10 * torch.randn(9, 4)
    expected, tensors = fitted.predict(x), fitted.compile()(x)
    assert list(tensors) == ["mean", "entropy", "mutual_information"]
    for name, values in tensors.items():
        torch.testing.assert_close(values, getattr(expected, name).float(), rtol=1e-4, atol=1e-5)
    assert tensors["mean"].shape == (9, num_labels)


def test_a_linearised_last_layer_below_something_else_is_refused():
    def make_network_with_tanh():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh())

    with pytest.raises(ValueError, match="linear in those that move"):
        fit_posterior(Laplace(tune="evidence"), make_network_with_tanh).compile(2)
    without_shape = fit_posterior(Laplace(tune="evidence"))
    without_shape.info.clear()
    with pytest.raises(ValueError, match="linear in those that move"):
        without_shape.compile(2)


def test_weights_that_all_draws_share_are_stored_once():
    fitted = fit_posterior(Laplace(tune="evidence"))
    module = fitted.compile(5)
    size = sum(param.numel() for param in network().parameters())
    last = sum(param.numel() for param in network()[9].parameters())
    assert sum(param.numel() for param in module.parameters()) == size + 4 * last
    assert len(module.networks) == 1  # the inputs of the last layer are computed once
    copied = copy.deepcopy(module).double()  # a move keeps what is shared shared
    assert sum(param.numel() for param in copied.parameters()) == size + 4 * last


def test_the_module_is_independent_of_the_posterior():
    fitted, x = fit_posterior(MAP()), batch(5)[0]
    module = fitted.compile(1)
    before = module(x)["mean"]
    with torch.no_grad():
        for param in fitted.states[0].model.parameters():
            param.zero_()
    assert torch.equal(module(x)["mean"], before)


def test_every_draw_keeps_its_own_running_statistics():
    module = fit_posterior(SWAG(rank=3)).compile(2)
    first, second = (net[1].running_mean for net in module.networks)
    assert not torch.equal(first, second)
    with preserve_buffers(module):
        assert not any(child.training for child in module.modules())


def test_probabilities_of_zero_have_finite_summaries():
    fitted = FittedPosterior(MAP(), [MAP().init(ConfidentNetwork(), None, 5)], Categorical(3))
    tensors = fitted.compile(1)(torch.tensor([[1.0, 0.0, 0.0]]))
    assert all(values.isfinite().all() for values in tensors.values())
    assert float(tensors["entropy"]) == 0
    fitted.likelihood = Bernoulli(3)
    tensors = fitted.compile(1)(torch.tensor([[1.0, -1.0, 2.0]]))
    assert tensors["mean"].tolist() == [[1.0, 0.0, 1.0]]
    assert float(tensors["entropy"]) == float(tensors["mutual_information"]) == 0


class ConfidentNetwork(nn.Module):
    """So confident that the probabilities of all other classes are zero."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1e4))

    def forward(self, x):
        return x * self.factor


def test_other_transforms_and_likelihoods():
    fitted, x = fit_posterior(MAP()), batch(5)[0]
    fitted.transform = partial(torch.mul, torch.tensor(2.0))
    fitted.likelihood = Custom(nn.functional.cross_entropy, Categorical(3))
    torch.testing.assert_close(fitted.compile(1)(x)["mean"], fitted.predict(x).mean.float(), rtol=1e-5, atol=1e-6)
    fitted.likelihood = Custom(nn.functional.cross_entropy, None)
    with pytest.raises(TypeError, match="PredictiveSummary of your own"):
        fitted.compile(1)


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="Expected inputs of 1 channel,"):
        fit_posterior(MAP()).compile(1)(torch.ones(2, 3, 8, 8))
