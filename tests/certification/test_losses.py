"""Losses in [0, 1] of networks drawn from a posterior."""

import math

import pytest
import torch
from torch.nn import functional as F

from flatbayes.certification.losses import compute_losses, predict_draws, truncated_cross_entropy
from flatbayes.data import Split
from flatbayes.posteriors import SGVB
from support import network


def test_cross_entropy_is_scaled_below_the_truncation():
    logits = torch.randn(50, 4, dtype=torch.float64)
    targets = torch.arange(50) % 4
    losses = truncated_cross_entropy(logits, targets, 1e-5)
    expected = F.cross_entropy(logits, targets, reduction="none") / math.log(1e5)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


def test_cross_entropy_lies_between_zero_and_one():
    logits = torch.tensor([[0.0, 1000.0], [1000.0, 0.0], [0.0, 0.0]])
    losses = truncated_cross_entropy(logits, torch.tensor([0, 0, 0]), 0.01)
    assert losses.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(100)])


def test_losses_are_means_over_examples_per_network():
    split = Split(inputs=torch.zeros(2, 1), targets=torch.tensor([0, 1]))
    correct = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    losses = compute_losses([correct, correct.flip(0), torch.tensor([[1.0, 0.0], [1.0, 0.0]])], split, 1e-5)
    assert losses.errors.tolist() == [0.0, 1.0, 0.5]
    assert losses.cross_entropies[:2].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_draws_are_reproducible_and_leave_the_model_unchanged():
    model = network()
    posterior = SGVB(initial_std=0.1, params="all")
    state = posterior.init(model, None, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(7, 1, 8, 8)
    full_batches, small_batches = (
        [*predict_draws(posterior, state, inputs, 3, seed=1, batch_size=size)] for size in (7, 2)
    )
    other_seed = next(predict_draws(posterior, state, inputs, 1, seed=2, batch_size=7))
    for a, b in zip(full_batches, small_batches, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # the batch size has no effect
    assert not torch.equal(full_batches[0], full_batches[1])
    assert not torch.equal(full_batches[0], other_seed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
