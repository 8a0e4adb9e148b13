"""Power sampling against the exact probabilities of draws without replacement, and what is refused."""

import itertools
import math

import pytest
import torch

from flatbayes.decisions import sample_batch

NUM_SEEDS = 4000


def sequential_probability(rows, weights):
    """Probability of drawing these rows in this order, each in proportion to the weights of those that are left."""
    left, probability = list(range(len(weights))), 1.0
    for row in rows:
        probability *= weights[row] / sum(weights[k] for k in left)
        left.remove(row)
    return probability


@pytest.mark.parametrize("power", [0, 1, 2])
def test_batches_have_the_probabilities_of_draws_without_replacement(power):
    scores = torch.tensor([0.5, 0.1, 1.0, 0.25])
    weights = [float(score) ** power for score in scores]
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for seed in range(NUM_SEEDS):
        counts[tuple(sample_batch(scores, 2, power=power, seed=seed).tolist())] += 1
    for rows, count in counts.items():
        expected = sequential_probability(rows, weights)
        spread = math.sqrt(expected * (1 - expected) / NUM_SEEDS)
        assert abs(count / NUM_SEEDS - expected) < 4.5 * spread


def test_infinite_power_takes_the_highest_scores():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)).abs()
    assert torch.equal(sample_batch(scores, 7, power=math.inf), scores.topk(7).indices)


def test_examples_with_score_zero_are_drawn_last_and_at_random():
    scores = [0.0, 1e-300, 0.0, 2.0, 0.0]
    draws = [sample_batch(scores, 3, seed=seed).tolist() for seed in range(60)]
    assert all(set(rows[:2]) == {1, 3} for rows in draws)
    assert {rows[2] for rows in draws} == {0, 2, 4}
    ties = {sample_batch(torch.zeros(4), 1, power=math.inf, seed=seed).item() for seed in range(60)}
    assert ties == {0, 1, 2, 3}


def test_all_examples_once_and_the_same_for_a_seed():
    scores = torch.rand(30, generator=torch.Generator().manual_seed(1))
    rows = sample_batch(scores, 30, seed=5)
    assert sorted(rows.tolist()) == list(range(30))
    assert torch.equal(rows, sample_batch(scores.numpy(), 30, seed=5))
    assert not torch.equal(rows, sample_batch(scores, 30, seed=6))


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([0.1, -0.1], {}, "at least 0"),
        ([0.1, math.nan], {}, "finite"),
        ([0.1, math.inf], {}, "finite"),
        ([[0.1, 0.2]], {}, "one number"),
        ([0.1, 0.2], {"count": 3}, "1 to 2"),
        ([0.1, 0.2], {"count": 0}, "1 to 2"),
        ([0.1, 0.2], {"power": -1.0}, "power"),
        ([0.1, 0.2], {"power": math.nan}, "power"),
    ],
)
def test_what_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        sample_batch(torch.tensor(scores), **{"count": 1, **options})
