"""Tests of calibration: exact cases, and p-values that are uniform where the predictions are right."""

import math

import pytest
import torch
from scipy import stats

from flatbayes.checks.calibration_tests import (
    compute_z_scores,
    correct_signed_root,
    run_coverage_test,
    run_fractions_test,
    run_paired_test,
    run_scale_test,
    run_temperature_test,
)


@pytest.mark.parametrize(("num_right", "probability"), [(160, 0.9), (190, 0.9), (120, 0.7), (150, 0.7)])
def test_temperature_test_of_equal_predictions_is_binomial(num_right, probability):
    count = 200
    log_probs = torch.tensor([[probability, 1 - probability]], dtype=torch.float64).log().repeat(count, 1)
    labels = (torch.arange(count) >= num_right).long()
    test = run_temperature_test(log_probs, labels)
    fraction = num_right / count
    log_odds = math.log(fraction / (1 - fraction)) if num_right < count else math.inf
    assert test.temperature == pytest.approx(math.log(probability / (1 - probability)) / log_odds, rel=1e-9)
    binomial = stats.binom(count, probability)
    middle = binomial.pmf(num_right) / 2  # the approximation is continuous: half of the point mass
    tail = min(binomial.cdf(num_right) - middle, binomial.sf(num_right) + middle)
    assert test.p_value == pytest.approx(2 * tail, rel=0.08)


def test_temperature_test_where_every_label_is_the_most_probable_class_is_exact():
    probs = torch.tensor([0.6, 0.8, 0.9], dtype=torch.float64)
    log_probs = torch.stack([probs, 1 - probs], 1).log()
    test = run_temperature_test(log_probs, torch.zeros(3, dtype=torch.int64))
    assert test.temperature == pytest.approx(0.01)
    assert test.p_value == pytest.approx(2 * 0.6 * 0.8 * 0.9)


def test_labels_that_tie_for_the_most_probable_class_are_as_likely_as_their_sum():
    log_probs = torch.tensor([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert run_temperature_test(log_probs, torch.tensor([1, 0])).p_value == pytest.approx(2 * 0.8 * 0.5)
    assert run_temperature_test(torch.full((30, 2), math.log(0.5)), torch.zeros(30, dtype=torch.int64)).p_value == 1


def test_certain_and_wrong_predictions_of_a_training_that_diverged_are_refused():
    log_probs = torch.tensor([[0.0, -1e22], [-1e22, 0.0]], dtype=torch.float64)
    assert run_temperature_test(log_probs, torch.tensor([1, 1])).p_value == 0


@pytest.mark.parametrize("num_right", [40, 45, 56, 65])  # of 100: the estimate is at an end of the temperatures
def test_temperature_test_of_nearly_uniform_predictions_is_binomial(num_right):
    log_probs = torch.tensor([[0.5001, 0.4999]], dtype=torch.float64).log().repeat(100, 1)
    test = run_temperature_test(log_probs, (torch.arange(100) >= num_right).long())
    assert test.temperature == (100 if num_right < 50 else 0.01)
    z = (num_right - 50.01) / math.sqrt(100 * 0.5001 * 0.4999)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-6)


def test_a_label_of_probability_zero_is_impossible():
    log_probs = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    assert run_temperature_test(log_probs, torch.tensor([0, 1])).p_value == 0


def test_temperature_test_is_uniform_under_the_null():
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(150):
        probs = (3 * torch.randn(80, 4, generator=generator, dtype=torch.float64)).softmax(-1)
        labels = torch.multinomial(probs, 1, generator=generator)[:, 0]
        p_values.append(run_temperature_test(probs.log(), labels).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_scale_test_is_chi_square():
    scores = torch.tensor([0.5, -1.5, 2.0, 1.0], dtype=torch.float64)
    scale, p_value = run_scale_test(scores)
    assert scale == pytest.approx(math.sqrt(7.5 / 4))
    assert p_value == pytest.approx(2 * stats.chi2.sf(7.5, 4))


@pytest.mark.parametrize("num_covered", [0, 47, 50])
def test_coverage_test_is_binomial(num_covered):
    smaller, larger = stats.binom.cdf(num_covered, 50, 0.9), stats.binom.sf(num_covered - 1, 50, 0.9)
    assert run_coverage_test(num_covered, 50, 0.9) == pytest.approx(min(1, 2 * min(smaller, larger)))


def test_paired_test_is_that_of_scipy():
    differences = torch.tensor([0.3, -0.1, 0.4, 0.2])
    expected = stats.ttest_1samp(differences.numpy(), 0, alternative="greater").pvalue
    assert run_paired_test(differences) == pytest.approx(expected)
    assert run_paired_test(torch.ones(1)) == run_paired_test(torch.zeros(5)) == 1
    assert run_paired_test(torch.ones(5)) == 0


def test_fractions_test_is_that_of_fisher():
    expected = stats.fisher_exact([[8, 32], [3, 57]], alternative="greater").pvalue
    assert run_fractions_test(8, 40, 3, 60) == pytest.approx(expected)


def test_z_scores_are_finite_normal_quantiles():
    cdf = torch.tensor([0.0, 0.025, 0.5, 1.0], dtype=torch.float64)
    scores = compute_z_scores(cdf)
    assert scores.isfinite().all()
    assert float(scores[1]) == pytest.approx(stats.norm.ppf(0.025))


def test_signed_root_near_zero_is_not_corrected():
    assert correct_signed_root(1e-6, 2e-6) == 1e-6
    assert correct_signed_root(-2.0, -3.0) == pytest.approx(-2 - math.log(1.5) / 2)
