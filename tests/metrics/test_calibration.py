import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_calibration_error

from flatbayes.metrics import ReliabilityBins, adaptive_ece, classwise_ece, ece, reliability_bins, wilson_interval
from flatbayes.metrics.calibration import bin_confidences
from flatbayes.metrics.proportions import estimate_design_effect


def two_classes(*confidences, dtype=torch.float64):
    """Predictions of class 0 with these confidences, at least 0.5."""
    top = torch.tensor(confidences, dtype=dtype)
    return torch.stack([top, 1 - top], dim=-1)


def slow_ece(probs, labels, num_bins, closed):
    """The definition, one bin and one example at a time."""
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = []
        for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
            top = max(row)
            if closed == "right":
                belongs = low < top <= high or (b == 0 and top == 0)
            else:
                belongs = low <= top < high or (b == num_bins - 1 and top == 1)
            if belongs:
                inside.append((top, row.index(top) == label))
        if inside:
            conf = sum(c for c, _ in inside) / len(inside)
            acc = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(labels) * abs(acc - conf)
    return total


class TestEdges:
    """Oracle O26 of the methods reference: one of the confidences lies on an edge."""

    probs, labels = two_classes(0.95, 0.97), torch.tensor([0, 1])

    def test_right_closed_bins(self):
        assert ece(self.probs, self.labels) == pytest.approx(0.51, abs=1e-15)
        assert ece(self.probs, self.labels, 20, "right") == ece(self.probs, self.labels)

    def test_left_closed_bins(self):
        assert ece(self.probs, self.labels, 20, "left") == pytest.approx(0.46, abs=1e-15)

    def test_float32_confidences_lie_below_the_edge(self):
        bins = reliability_bins(two_classes(0.95, dtype=torch.float32), torch.tensor([0]), 20, "left")
        assert float(torch.tensor(0.95)) < 0.95
        assert bins.counts[18] == 1

    @pytest.mark.parametrize("num_bins", [2, 3, 7, 10, 15, 20, 100])
    def test_every_edge_belongs_to_one_side(self, num_bins):
        for m in range((num_bins + 1) // 2, num_bins + 1):  # the top of two classes is at least one half
            probs, label = two_classes(m / num_bins), torch.tensor([0])
            assert reliability_bins(probs, label, num_bins, "right").counts.index(1) == m - 1
            assert reliability_bins(probs, label, num_bins, "left").counts.index(1) == min(m, num_bins - 1)

    @pytest.mark.parametrize("closed", ["right", "left"])
    def test_certainty_is_in_the_last_bin(self, closed):
        assert reliability_bins(torch.eye(3), torch.tensor([0, 1, 2]), 20, closed).counts[-1] == 3
        assert ece(torch.eye(3), torch.tensor([0, 1, 2]), 20, closed) == 0
        assert ece(torch.eye(3), torch.tensor([1, 2, 0]), 20, closed) == 1

    @pytest.mark.parametrize("closed", ["right", "left"])
    def test_rounding_above_certainty_stays_in_the_last_bin(self, closed):
        probs = torch.tensor([[1 + 1e-6, 0.0]], dtype=torch.float64)
        bins = reliability_bins(probs, torch.tensor([0]), 20, closed)
        assert bins.counts[-1] == 1
        assert bins.confidence[-1] == 1


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num=st.integers(1, 60),
    classes=st.integers(1, 5),
    num_bins=st.integers(1, 25),
    closed=st.sampled_from(["right", "left"]),
    grid=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_definition_by_loops(seed, num, classes, num_bins, closed, grid, dtype):
    generator = torch.Generator().manual_seed(seed)
    if grid:  # probabilities on edges, and ties
        drawn = torch.randint(0, classes, (num, 20), generator=generator)
        probs = torch.nn.functional.one_hot(drawn, classes).sum(1).to(dtype) / 20
    else:
        probs = (3 * torch.randn(num, classes, generator=generator, dtype=dtype)).softmax(-1)
        probs = probs.clamp(max=1)
    labels = torch.randint(0, classes, (num,), generator=generator)
    expected = slow_ece(probs.double(), labels, num_bins, closed)
    assert ece(probs, labels, num_bins, closed) == pytest.approx(expected, abs=1e-12)
    assert sum(reliability_bins(probs, labels, num_bins, closed).counts) == num


def test_one_bin_is_accuracy_against_confidence():
    probs, labels = two_classes(0.6, 0.7, 0.8, 0.9), torch.tensor([0, 0, 1, 1])
    assert ece(probs, labels, 1) == pytest.approx(abs(0.5 - 0.75), abs=1e-15)


def test_bins_by_hand():
    bins = reliability_bins(two_classes(0.6, 0.7, 0.95), torch.tensor([0, 1, 0]), num_bins=4)
    assert bins.edges == (0, 0.25, 0.5, 0.75, 1)
    assert bins.counts == (0, 0, 2, 1)
    assert bins.confidence == pytest.approx((0, 0, 0.65, 0.95))
    assert bins.accuracy == (0, 0, 0.5, 1)


def test_bins_are_converted_to_json():
    bins = reliability_bins(two_classes(0.6, 0.7, 0.95), torch.tensor([0, 1, 0]))
    read = json.loads(json.dumps(bins.to_dict(), allow_nan=False))
    assert read == bins.to_dict()
    assert read.pop("design_effect") == 1
    assert {name: len(values) for name, values in read.items()} == {
        "edges": 21,
        "counts": 20,
        "confidence": 20,
        "accuracy": 20,
    }


@pytest.mark.parametrize("num_bins", [10, 15, 20])
def test_agrees_with_torchmetrics_away_from_edges(num_bins):
    probs = (2 * torch.randn(3000, 7, dtype=torch.float64)).softmax(-1)
    labels = torch.randint(0, 7, (3000,))
    expected = multiclass_calibration_error(probs, labels, 7, n_bins=num_bins, norm="l1")
    assert ece(probs, labels, num_bins) == pytest.approx(float(expected), abs=1e-6)


class TestIntervals:
    @pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (950, 1000), (1, 10**6)])
    @pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
    def test_agree_with_scipy(self, hits, count, level):
        expected = binomtest(hits, count).proportion_ci(level, "wilson")
        assert wilson_interval(hits, count, level) == pytest.approx((expected.low, expected.high), abs=1e-12)

    def test_no_trials_give_the_unit_interval(self):
        assert wilson_interval(0, 0) == (0, 1)

    def test_intervals_of_bins(self):
        bins = reliability_bins(two_classes(*[0.97] * 10), torch.tensor([0] * 7 + [1] * 3))
        intervals = bins.accuracy_intervals()
        assert intervals[19] == wilson_interval(7, 10)
        assert set(intervals[:19]) == {(0, 1)}
        assert bins.accuracy_intervals(0.5)[19] == wilson_interval(7, 10, 0.5)

    def test_invalid_arguments_are_refused(self):
        with pytest.raises(ValueError, match="between 0 and 1, got 1"):
            wilson_interval(1, 2, 1)
        with pytest.raises(ValueError, match="got 3 of 2"):
            wilson_interval(3, 2)


def slow_adaptive(probs, labels, num_bins):
    """Sorted by confidence and cut by hand; confidences are distinct."""
    top, guess = probs.max(-1)
    order = top.argsort()
    chunks = [order[k] for k in np.array_split(np.arange(len(top)), num_bins)]
    gaps = [abs(float((guess[c] == labels[c]).double().mean() - top[c].mean())) * len(c) for c in chunks if len(c)]
    return sum(gaps) / len(top)


class TestAdaptive:
    @pytest.mark.parametrize(("num", "num_bins"), [(1000, 20), (60, 15), (20, 20), (1, 1), (1, 20), (5, 20)])
    def test_equals_the_definition_by_loops(self, num, num_bins):
        probs = torch.randn(num, 4, dtype=torch.float64).softmax(-1)
        labels = torch.randint(0, 4, (num,))
        assert adaptive_ece(probs, labels, num_bins) == pytest.approx(
            slow_adaptive(probs, labels, num_bins), abs=1e-12
        )

    def test_one_bin_is_accuracy_against_confidence(self):
        probs, labels = two_classes(0.6, 0.7, 0.8, 0.9), torch.tensor([0, 0, 1, 1])
        assert adaptive_ece(probs, labels, 1) == pytest.approx(0.25, abs=1e-15)

    def test_bin_sizes_differ_by_at_most_one(self):
        probs, labels = two_classes(0.6, 0.7, 0.8), torch.tensor([0, 0, 1])
        # Two bins of three: {.6, .7} and {.8}, gaps |1 - .65| and |0 - .8|.
        assert adaptive_ece(probs, labels, 2) == pytest.approx((2 * 0.35 + 0.8) / 3, abs=1e-15)

    def test_order_of_ties_does_not_matter(self):
        probs, labels = two_classes(*[0.75] * 100), torch.tensor([0] * 75 + [1] * 25)
        assert adaptive_ece(probs, labels) == pytest.approx(0, abs=1e-14)
        assert adaptive_ece(probs, labels.flip(0)) == pytest.approx(0, abs=1e-14)

    def test_certainty(self):
        assert adaptive_ece(torch.eye(3), torch.tensor([0, 1, 2])) == 0
        assert adaptive_ece(torch.eye(3), torch.tensor([1, 2, 0])) == 1
        assert adaptive_ece(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)) == 0


def slow_classwise(probs, labels, num_bins, closed):
    """A binary calibration error for every class, by masks."""
    total, edges = 0.0, [b / num_bins for b in range(num_bins + 1)]
    for c in range(probs.shape[1]):
        p, is_class = probs[:, c], (labels == c).double()
        for b, (low, high) in enumerate(itertools.pairwise(edges)):
            if closed == "right":
                inside = ((p > low) | (p == 0) * (b == 0)) & (p <= high)
            else:
                inside = (p >= low) & ((p < high) | (p == 1) * (b == num_bins - 1))
            if inside.any():
                total += float(inside.sum()) / len(p) * abs(float(is_class[inside].mean() - p[inside].mean()))
    return total / probs.shape[1]


class TestClasswise:
    @pytest.mark.parametrize("closed", ["right", "left"])
    @pytest.mark.parametrize("grid", [True, False])
    def test_equals_the_definition_by_loops(self, closed, grid):
        if grid:
            probs = torch.nn.functional.one_hot(torch.randint(0, 3, (80, 20)), 3).sum(1).double() / 20
        else:
            probs = torch.randn(80, 3, dtype=torch.float64).softmax(-1)
        labels = torch.randint(0, 3, (80,))
        expected = slow_classwise(probs, labels, 20, closed)
        assert classwise_ece(probs, labels, 20, closed) == pytest.approx(expected, abs=1e-12)

    def test_by_hand(self):
        # Both classes are off by 0.1 in one bin each: (0.1 + 0.1) / 2.
        probs, labels = two_classes(*[0.7] * 10), torch.tensor([0] * 8 + [1] * 2)
        assert classwise_ece(probs, labels) == pytest.approx(0.1, abs=1e-14)
        assert ece(probs, labels) == pytest.approx(0.1, abs=1e-14)

    def test_detects_errors_below_the_top_class(self):
        probs = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]] * 5, dtype=torch.float64)
        labels = torch.tensor([0, 1] * 5)  # class 1 comes where it was said to be impossible
        assert ece(probs, labels) == pytest.approx(0, abs=1e-14)
        # Class 0: said 0.5, is so. Class 1: 0.5 for five that are not, 0 for five that are. Class 2: 0.5 for five.
        assert classwise_ece(probs, labels) == pytest.approx((0 + (0.25 + 0.5) + 0.25) / 3, abs=1e-14)

    def test_certainty(self):
        assert classwise_ece(torch.eye(3), torch.tensor([0, 1, 2])) == 0
        assert classwise_ece(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)) == 0


@pytest.mark.parametrize("function", [ece, reliability_bins, classwise_ece])
def test_invalid_binnings_are_refused(function):
    probs, labels = two_classes(0.6), torch.tensor([0])
    with pytest.raises(ValueError, match="at least 1 bin, got num_bins=0"):
        function(probs, labels, 0)
    with pytest.raises(ValueError, match=r"closed must be 'right' .* got 'both'"):
        function(probs, labels, 20, "both")


def test_adaptive_ece_refuses_zero_bins():
    with pytest.raises(ValueError, match="at least 1 bin, got num_bins=0"):
        adaptive_ece(two_classes(0.6), torch.tensor([0]), 0)


def test_merged_bins_have_enough_predictions_and_the_same_means():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(400, 5, generator=generator).mul(2).softmax(-1)
    labels = torch.randint(5, (400,), generator=generator)
    bins = reliability_bins(probs, labels)
    merged = bins.merge(30)
    assert min(merged.counts) >= 30
    assert sum(merged.counts) == sum(bins.counts) == 400
    for name in ("confidence", "accuracy"):
        means = [sum(v * n for v, n in zip(getattr(b, name), b.counts, strict=True)) / 400 for b in (bins, merged)]
        assert means[0] == pytest.approx(means[1])
    assert set(merged.edges) <= set(bins.edges)
    assert (merged.edges[0], merged.edges[-1]) == (0.0, 1.0)
    assert len(merged.edges) == len(merged.counts) + 1


def test_too_few_predictions_become_one_bin():
    bins = ReliabilityBins((0.0, 0.25, 0.5, 1.0), (2, 0, 3), (0.2, 0.0, 0.9), (0.0, 0.0, 1.0))
    assert bins.merge(10) == ReliabilityBins((0.0, 1.0), (5,), pytest.approx((0.62,)), pytest.approx((0.6,)))
    assert bins.merge(0) == bins


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_design_effect_of_values_with_a_common_part(correlation):
    """1 + (k - 1) rho for k values with the correlation rho in each example (Kish, 1965)."""
    generator = torch.Generator().manual_seed(0)
    common, own = (torch.randn(4000, size, generator=generator) for size in (1, 5))
    values = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    effect = estimate_design_effect(values.flatten(), torch.arange(4000).repeat_interleave(5))
    assert effect == pytest.approx(1 + 4 * correlation, rel=0.06)


def test_intervals_of_dependent_predictions_are_those_of_fewer():
    confidence, is_right = torch.full((400,), 0.7), (torch.arange(400) % 40 < 28).double()
    examples = torch.arange(400) // 4  # all four right, or all four wrong
    bins = bin_confidences(confidence, is_right, 10, examples=examples)
    assert bins.design_effect == pytest.approx(4 * 100 / 99)
    assert bins.merge().design_effect == bins.design_effect
    assert bins.accuracy_intervals()[6] == pytest.approx(wilson_interval(70, 100), abs=0.005)
    assert bin_confidences(confidence, is_right, 10).accuracy_intervals()[6] == wilson_interval(280, 400)
    assert estimate_design_effect(is_right, torch.zeros(400).long()) == 400
