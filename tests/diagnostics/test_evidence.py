import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from flatbayes import MAP, MLP, SAM, SWAG, Ensemble, Plain, TrainingConfig, fit
from flatbayes.data import Standardize
from flatbayes.diagnostics import compute_evidence, estimate_evidence
from flatbayes.likelihoods import Likelihood

IDENTITY = Standardize(mean=torch.zeros(3, dtype=torch.float64), std=torch.ones(3, dtype=torch.float64))
STRUCTURES = ["kron", "diag", "last_layer", "last_layer_kron"]


class UnitGaussian(Likelihood):
    """N(output, 1)."""

    has_predictive = False
    num_outputs = 1

    def loss(self, outputs, targets):
        return 0.5 * (outputs.squeeze(1) - targets).square().mean() + 0.5 * math.log(2 * math.pi)

    def predictive(self, outputs, *, keep_members=False):
        raise NotImplementedError


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    return inputs, inputs @ torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64) + 0.3


def fit_at(network, data, posterior=None):
    """A posterior whose network is not trained any further."""
    config = TrainingConfig(epochs=0)
    return fit(network, data, posterior or MAP(), Plain(), config, likelihood=UnitGaussian(), transform=IDENTITY)


def solve_ridge(inputs, targets, precision):
    """A linear network at the maximum of the posterior density, and its log evidence by the density of the data."""
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    weights = torch.linalg.solve(design.T @ design + precision * torch.eye(4, dtype=inputs.dtype), design.T @ targets)
    network = nn.Linear(3, 1).double()
    with torch.no_grad():
        network.weight.copy_(weights[:3])
        network.bias.copy_(weights[3:])
    covariance = design @ design.T / precision + torch.eye(len(inputs), dtype=inputs.dtype)
    return network, float(
        MultivariateNormal(torch.zeros(len(inputs), dtype=inputs.dtype), covariance).log_prob(targets)
    )


@pytest.mark.parametrize("precision", [0.1, 1.0, 30.0])
def test_the_evidence_of_a_linear_regression_is_exact(regression, precision):
    network, expected = solve_ridge(*regression, precision)
    evidence = estimate_evidence(
        fit_at(network, regression), regression, structure="last_layer", prior_precision=precision
    )
    assert evidence.log_evidence == pytest.approx(expected, rel=1e-5)


def test_the_precision_of_the_highest_evidence_is_chosen(regression):
    fitted = fit_at(solve_ridge(*regression, 0.5)[0], regression)
    best = estimate_evidence(fitted, regression, structure="last_layer")
    for factor in (0.8, 1.25):
        other = estimate_evidence(
            fitted, regression, structure="last_layer", prior_precision=factor * best.prior_precision
        )
        assert other.log_evidence < best.log_evidence
        assert other.log_likelihood == best.log_likelihood


def test_the_terms_of_one_weight():
    evidence = compute_evidence(-3.0, torch.tensor([3.0]), 4.0, num_params=2, num_data=5, prior_precision=1.0)
    assert evidence.log_occam_factor == pytest.approx(-0.5 * (4.0 + math.log(4.0)))
    assert evidence.effective_params == pytest.approx(0.75)
    assert evidence.log_evidence == pytest.approx(-3.0 + evidence.log_occam_factor)
    text = evidence.summary()
    assert "Evidence of 5 examples" in text
    assert "of 2" in text


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_part_of_the_examples_is_scaled_to_all(regression, structure):
    inputs, targets = torch.cat([regression[0]] * 2), torch.cat([regression[1]] * 2)
    fitted = fit_at(solve_ridge(inputs, targets, 1.0)[0], (inputs, targets))
    whole, part = (
        estimate_evidence(fitted, x, y, structure=structure, prior_precision=1.0)
        for x, y in ((inputs, targets), regression)
    )
    assert whole.num_data == part.num_data == 60
    assert part.log_evidence == pytest.approx(whole.log_evidence, rel=1e-6)


def test_nothing_changes(regression):
    fitted = fit_at(solve_ridge(*regression, 1.0)[0], regression)
    network = fitted.states[0].model.train()
    before, random_state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    estimate_evidence(fitted, regression)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(param.grad is None for param in network.parameters())


@pytest.fixture(scope="module")
def classes():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_classifiers_have_an_evidence(classes, structure):
    config = TrainingConfig(epochs=3, batch_size=20)
    evidence = estimate_evidence(fit(MLP, classes, SWAG(rank=2), SAM(0.05), config), classes, structure=structure)
    assert -500 < evidence.log_evidence < evidence.log_likelihood < 0
    assert 0 < evidence.effective_params < min(evidence.num_params, 60 * 2 + 1e-6) + 60
    assert evidence.log_occam_factor < 0


def test_members_have_their_own_evidence(classes):
    fitted = fit(MLP, classes, Ensemble(MAP(), 2), Plain(), TrainingConfig(epochs=2, batch_size=20))
    first, second = (estimate_evidence(fitted, classes, member=k) for k in range(2))
    assert first.log_evidence != second.log_evidence
    with pytest.raises(ValueError, match="member must be from 0 to 1, got 2"):
        estimate_evidence(fitted, classes, member=2)


def test_the_last_layer_is_the_default(classes):
    fitted = fit(MLP, classes, MAP(), Plain(), TrainingConfig(epochs=2, batch_size=20))
    evidence = estimate_evidence(fitted, classes)
    assert evidence == estimate_evidence(fitted, classes, structure="last_layer")
    assert evidence.num_params == 3 * 129


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_precision": 0.0}, "prior_precision must be positive"),
        ({"prior_precision": math.nan}, "prior_precision must be positive"),
    ],
)
def test_options_are_checked(regression, options, message):
    fitted = fit_at(nn.Linear(3, 1).double(), regression)
    with pytest.raises(ValueError, match=message):
        estimate_evidence(fitted, regression, **options)


def test_weights_that_are_zero_have_no_best_precision(regression):
    network = nn.Linear(3, 1).double()
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    with pytest.raises(ValueError, match="evidence has no maximum"):
        estimate_evidence(fit_at(network, regression), regression)
