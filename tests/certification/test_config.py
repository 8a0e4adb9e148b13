"""Settings of a certificate and the split into prior set and bound set."""

import pytest
import torch

from flatbayes.certification import CertificationConfig
from flatbayes.certification.prior import split_prior_and_bound


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior_fraction": 0.0}, "prior_fraction must lie strictly between 0 and 1, got 0.0"),
        ({"prior_fraction": 1.0}, "prior_fraction must lie"),
        ({"delta": 1.5}, "delta must lie"),
        ({"delta_mc": float("nan")}, "delta_mc must lie"),
        ({"min_probability": 0.0}, "min_probability must lie"),
        ({"delta": 0.6, "delta_mc": 0.5}, "delta . delta_mc must be below 1"),
        ({"num_draws": 0}, "num_draws must be at least 1, got 0"),
        ({"num_trial_draws": 0}, "num_trial_draws must be at least 1"),
        ({"num_test_draws": 0}, "num_test_draws must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"kl_weight": 0.0}, "kl_weight must be positive"),
        ({"lr": float("inf")}, "lr must be positive"),
        ({"prior_stds": ()}, "at least one finite standard deviation"),
        ({"prior_stds": (0.1, 0.0)}, "at least one finite standard deviation"),
        ({"prior_stds": (0.1, 0.1)}, "must be distinct"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CertificationConfig(**settings)


def test_split_is_a_reproducible_partition():
    prior, bound = split_prior_and_bound(101, 0.3, seed=5)
    assert len(prior) == 30
    assert sorted(torch.cat([prior, bound]).tolist()) == list(range(101))
    assert torch.equal(split_prior_and_bound(101, 0.3, seed=5)[0], prior)
    assert not torch.equal(split_prior_and_bound(101, 0.3, seed=6)[0], prior)


def test_split_is_uniform_over_examples():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[split_prior_and_bound(10, 0.4, seed)[1]] += 1
    assert (counts / 2000 - 0.6).abs().max() < 5 * (0.24 / 2000) ** 0.5


@pytest.mark.parametrize(("num_data", "prior_fraction"), [(1, 0.5), (4, 0.1), (4, 0.9)])
def test_empty_set_is_refused(num_data, prior_fraction):
    with pytest.raises(ValueError, match="both need one"):
        split_prior_and_bound(num_data, prior_fraction, seed=0)
