"""Checks of predictions of several labels: every check applies or says why not, and cases that trip."""

import math
from functools import cache, partial

import pytest
import torch
from scipy import stats

from flatbayes import (
    IVON,
    MAP,
    MLP,
    SGHMC,
    SGLD,
    SGVB,
    SWAG,
    Ensemble,
    Laplace,
    MCDropout,
    TrainingConfig,
    calibrate,
    fit,
)
from flatbayes.checks import CHECKS
from flatbayes.checks.calibration_tests import run_grouped_temperature_test, run_temperature_test
from flatbayes.checks.evidence import compute_example_nll
from flatbayes.checks.gaussians import measure_explained
from flatbayes.checks.spread import measure_difference, measure_spread
from flatbayes.checks.training_length import compute_constant_nll
from flatbayes.core.spec import short_name
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Bernoulli, Custom
from support import make_multi_label_splits

SMALL = partial(MLP, hidden=(16,))


@cache
def symptoms():
    return make_multi_label_splits((300, 400, 10))


@cache
def fitted(posterior, epochs=20, optimizer=None):
    model = MLP if isinstance(posterior, MCDropout) else SMALL
    config = TrainingConfig(epochs=epochs, batch_size=32, optimizer=optimizer)
    return fit(model, symptoms(), posterior, Plain(), config, seed=0)


@pytest.mark.parametrize(
    "posterior",
    [
        SWAG(rank=2),
        SGLD(),
        Laplace("diag", "sampled"),
        SGVB(),
        IVON(),
        MCDropout(rate=0.1),
        Ensemble(size=2),
        Ensemble(SGHMC(), size=2),
    ],
    ids=short_name,
)
def test_every_check_gives_a_finding_or_a_reason(posterior):
    report = fitted(posterior, 8).check(symptoms().val, num_draws=6)
    names = [finding.name for finding in report.findings]
    assert sorted([*names, *report.skipped]) == sorted(entry.name for entry in CHECKS)
    assert {"confidence", "diverged", "one_network"} <= {*names}
    assert not [reason for reason in report.skipped.values() if "kind of prediction" in reason]
    assert report.skipped["coverage"] == "labels have no intervals"
    assert all(math.isfinite(finding.value) for finding in report.findings)
    expected = {"Laplace": "laplace_width", "IVON": "collapse", "SGVB": "collapse", "SWAG": "wide_posterior"}
    assert expected.get(type(posterior).__name__, "confidence") in names


def test_chains_of_samplers_are_compared():
    finding = fitted(Ensemble(SGHMC(), size=2), 20).check(symptoms().val, num_draws=6)["mixing"]
    assert "64 predictions" in finding.measurement


def test_overfitting_is_overconfident_until_it_is_calibrated():
    posterior = fitted(MAP(), 200, partial(torch.optim.Adam, lr=0.01))
    report = posterior.check(symptoms().val)
    assert not report["confidence"].passed
    assert report["confidence"].value > 1.5
    assert "a temperature of" in report["confidence"].measurement
    calibrated = calibrate(posterior, symptoms().val)
    assert calibrated.check(symptoms().val)["confidence"].value == pytest.approx(1, abs=0.02)


def test_draws_that_are_one_network_are_found():
    report = fitted(Laplace("diag", "sampled", scale=1e-6), 8).check(symptoms().val, num_draws=6)
    assert not report["one_network"].passed


def test_a_posterior_that_is_too_wide_is_found():
    report = fitted(SWAG(rank=2, scale=1e6), 8).check(symptoms().val, num_draws=6)
    assert not report["wide_posterior"].passed


def make_predictions(generator, num_examples=100):
    log_odds = 2 * torch.randn(num_examples, 6, generator=generator, dtype=torch.float64)
    return log_odds, torch.stack([-log_odds, log_odds], -1).sigmoid().log()


def test_temperature_test_of_one_label_is_that_of_two_classes():
    log_odds, log_probs = make_predictions(torch.Generator().manual_seed(0))
    labels = (log_odds / 3 > torch.randn(log_odds.shape, generator=torch.Generator().manual_seed(1))).long()
    labels[:, 1:] = -100
    labels[:10] = -100
    test, expected = (
        run_grouped_temperature_test(log_probs, labels),
        run_temperature_test(log_probs[10:, 0], labels[10:, 0]),
    )
    assert test.temperature == expected.temperature
    assert test.nll_gain == pytest.approx(expected.nll_gain)
    assert expected.p_value <= test.p_value


@pytest.mark.parametrize("dependent", [False, True])
def test_temperature_test_holds_for_labels_that_depend_on_each_other(dependent):
    generator, p_values, naive = torch.Generator().manual_seed(0), [], []
    for _ in range(150):
        log_odds, log_probs = make_predictions(generator)
        if dependent:  # all labels of an example are as surprising as the first one
            log_odds = log_odds[:, :1].expand(-1, 6)
            log_probs = log_probs[:, :1].expand(-1, 6, -1)
        uniforms = torch.rand(100, 1 if dependent else 6, generator=generator)
        labels = (log_odds.sigmoid() > uniforms).long()
        p_values.append(run_grouped_temperature_test(log_probs, labels).p_value)
        naive.append(run_temperature_test(log_probs.flatten(0, 1), labels.flatten()).p_value)
    p_values, naive = torch.tensor(p_values), torch.tensor(naive)
    assert float((p_values < 0.05).double().mean()) < 0.09
    assert (float((naive < 0.05).double().mean()) > 0.2) == dependent
    if not dependent:
        assert stats.kstest(p_values, "uniform").statistic < 0.15


def test_a_p_value_of_single_labels_below_the_smallest_number_is_that_of_examples():
    log_probs = torch.tensor([0.9, 0.1]).log().expand(3, 4000, 2)
    targets = (torch.arange(3 * 4000).reshape(3, 4000) % 2 + torch.tensor([[0], [0], [1]])) % 2
    assert run_temperature_test(log_probs.flatten(0, 1), targets.flatten()).p_value == 0
    targets[2, :3900] = 0
    assert 0.01 < run_grouped_temperature_test(log_probs, targets).p_value < 0.5


def test_an_impossible_label_is_found():
    log_probs = torch.tensor([[[0.0, -math.inf], [-1.0, -0.5]]] * 5)
    assert run_grouped_temperature_test(log_probs, torch.tensor([[1, 0]] * 5)).p_value == 0


def test_measures_by_hand():
    outputs = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    predictive, other = (Bernoulli(4).predictive(values) for values in (outputs, outputs + 1))
    targets = torch.randint(0, 2, (50, 4), generator=torch.Generator().manual_seed(1))
    targets[3:9, 2] = -100
    probs = outputs.double().sigmoid().mean(0)
    losses = torch.where(targets == 1, probs, 1 - probs).log().neg() * (targets >= 0)
    torch.testing.assert_close(compute_example_nll(predictive, targets), losses.sum(1))
    torch.testing.assert_close(measure_difference(predictive, other), (probs - other.mean).abs().mean(1))
    information, share = measure_spread(predictive)
    assert information == pytest.approx(float(predictive.mutual_information.mean()))
    assert share == pytest.approx(information / float(predictive.entropy.mean()))
    marginal = probs.mean(0)
    entropy = float(-(marginal * marginal.log() + (1 - marginal) * (1 - marginal).log()).sum())
    assert measure_explained(predictive) == pytest.approx(1 - float(predictive.entropy.mean()) / entropy)
    assert compute_constant_nll(Bernoulli(4)) == (pytest.approx(4 * math.log(2)), 4)
    assert compute_constant_nll(Custom(Bernoulli(4).loss, Bernoulli(4))) is None
