"""Cross-fitted NLL and the deep-ensemble equivalent."""

import math

import pytest
import torch

from flatbayes.metrics import cross_fitted_nll, ensemble_equivalent, ensemble_nlls, nll


def make_predictions(num_examples=400, scale=3.0, seed=0):
    """Overconfident predictions: labels are drawn from the probabilities of the logits, which are then multiplied."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_examples, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return (scale * logits).log_softmax(-1), labels, logits


def test_temperature_is_undone():
    log_probs, labels, logits = make_predictions(4000)
    exact = nll(logits.log_softmax(-1), labels)
    assert nll(log_probs, labels) > exact + 0.3
    assert cross_fitted_nll(log_probs, labels) == pytest.approx(exact, abs=2e-3)
    assert cross_fitted_nll(log_probs, labels) == pytest.approx(
        cross_fitted_nll(logits.log_softmax(-1), labels), abs=1e-5
    )


def test_a_half_is_not_used_for_its_own_temperature():
    """Labels of random predictions: fitted to the same examples, the NLL would be below that of chance."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (3 * torch.randn(40, 4, generator=generator, dtype=torch.float64)).log_softmax(-1)
    labels = torch.randint(4, (40,), generator=generator)
    assert cross_fitted_nll(log_probs, labels) > math.log(4)


@pytest.mark.parametrize(("num_examples", "num_wrong"), [(60, 1), (200, 2)])
def test_rare_mistakes_do_not_raise_the_nll_at_the_optimal_temperature(num_examples, num_wrong):
    log_probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log().repeat(num_examples, 1)
    labels = (torch.arange(num_examples) < num_wrong).long()
    assert cross_fitted_nll(log_probs, labels) < nll(log_probs, labels)  # the halves without a mistake had T = 0.01


def test_edges_of_the_cross_fitted_nll():
    log_probs, labels, _ = make_predictions(10)
    impossible = log_probs.clone()
    impossible[0] = torch.full((4,), -math.inf).index_fill(0, (labels[0] + 1) % 4, 0.0)
    assert cross_fitted_nll(impossible, labels) == math.inf
    assert math.isnan(cross_fitted_nll(log_probs[:1], labels[:1]))
    with pytest.raises(ValueError, match="one int64 class index"):
        cross_fitted_nll(log_probs, labels[:5])


def test_nlls_of_ensembles():
    _, labels, logits = make_predictions(400)
    noise = torch.randn(4, 400, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    member_probs = (logits + noise).softmax(-1)
    values = ensemble_nlls(member_probs, labels)
    assert values[3] == pytest.approx(cross_fitted_nll(member_probs.mean(0).log(), labels), abs=1e-12)
    expected = [cross_fitted_nll(member_probs[k].log(), labels) for k in range(3)]
    assert values[0] == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert sorted(values, reverse=True) == list(values)
    zero = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]).repeat(1, 6, 1)
    assert math.isfinite(ensemble_nlls(zero, torch.zeros(6, dtype=torch.int64))[0])


@pytest.mark.parametrize(
    ("value", "nlls", "expected"),
    [
        (0.5, [0.5, 0.3, 0.2], 1.0),
        (0.3, [0.5, 0.3, 0.2], 2.0),
        (0.22, [0.5, 0.3, 0.2], 2.8),
        (0.2, [0.5, 0.3, 0.2], 3.0),
        (0.9, [0.5, 0.3, 0.2], 1.0),
        (0.1, [0.5, 0.3, 0.2], 3.0),
        (0.4, [0.5, 0.6, 0.3], 2.5),  # two members count as one, which is better
        (0.6, [0.5, 0.6], 1.0),
        (0.5, [0.5, 0.5], 1.0),  # the smallest that predicts as well (Ashukha et al.)
        (0.3, [0.5, 0.3, 0.4, 0.2], 2.0),
        (0.4, [0.5], 1.0),
    ],
)
def test_size_with_the_same_nll(value, nlls, expected):
    assert ensemble_equivalent(value, nlls) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("value", "nlls"), [(math.nan, [0.5, 0.3]), (0.4, [0.5, math.inf]), (0.4, [])])
def test_no_size_without_finite_values(value, nlls):
    assert math.isnan(ensemble_equivalent(value, nlls))
