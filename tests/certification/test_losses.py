import math

import pytest
import torch
from torch.nn import functional as F

from flatbayes.certification.losses import bounded_cross_entropy, compute_losses, predict_draws
from flatbayes.data import Split
from flatbayes.posteriors import SGVB
from support import network


def test_the_cross_entropy_is_the_usual_one_below_its_bound():
    logits = torch.randn(50, 4, dtype=torch.float64)
    targets = torch.arange(50) % 4
    found = bounded_cross_entropy(logits, targets, 1e-5)
    expected = F.cross_entropy(logits, targets, reduction="none") / math.log(1e5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_cross_entropy_is_bounded():
    logits = torch.tensor([[0.0, 1000.0], [1000.0, 0.0], [0.0, 0.0]])
    found = bounded_cross_entropy(logits, torch.tensor([0, 0, 0]), 0.01)
    assert found.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(100)])


def test_losses_of_each_network():
    part = Split(inputs=torch.zeros(2, 1), targets=torch.tensor([0, 1]))
    right = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    found = compute_losses([right, right.flip(0), torch.tensor([[1.0, 0.0], [1.0, 0.0]])], part, 1e-5)
    assert found.errors.tolist() == [0.0, 1.0, 0.5]
    assert found.cross_entropies[:2].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_draws_differ_repeat_and_leave_the_model_alone():
    model = network()
    posterior = SGVB(initial_std=0.1, params="all")
    state = posterior.init(model, None, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(7, 1, 8, 8)
    one, two = ([*predict_draws(posterior, state, inputs, 3, seed=1, batch_size=size)] for size in (7, 2))
    other = next(predict_draws(posterior, state, inputs, 1, seed=2, batch_size=7))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # a batch decides nothing
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
