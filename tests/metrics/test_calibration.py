import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatbayes.metrics import ece, reliability


def two_classes(*confidences, dtype=torch.float64):
    """Predictions of class 0 with these confidences, from one half."""
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

    def test_float32_lies_where_its_rounding_puts_it(self):
        bins = reliability(two_classes(0.95, dtype=torch.float32), torch.tensor([0]), 20, "left")
        assert float(torch.tensor(0.95)) < 0.95
        assert bins.counts[18] == 1

    @pytest.mark.parametrize("num_bins", [2, 3, 7, 10, 15, 20, 100])
    def test_every_edge_belongs_to_one_side(self, num_bins):
        for m in range((num_bins + 1) // 2, num_bins + 1):  # the top of two classes is at least one half
            probs, label = two_classes(m / num_bins), torch.tensor([0])
            assert reliability(probs, label, num_bins, "right").counts.index(1) == m - 1
            assert reliability(probs, label, num_bins, "left").counts.index(1) == min(m, num_bins - 1)

    @pytest.mark.parametrize("closed", ["right", "left"])
    def test_certainty_is_in_the_last_bin(self, closed):
        assert reliability(torch.eye(3), torch.tensor([0, 1, 2]), 20, closed).counts[-1] == 3
        assert ece(torch.eye(3), torch.tensor([0, 1, 2]), 20, closed) == 0
        assert ece(torch.eye(3), torch.tensor([1, 2, 0]), 20, closed) == 1

    @pytest.mark.parametrize("closed", ["right", "left"])
    def test_rounding_above_certainty_stays_in_the_last_bin(self, closed):
        probs = torch.tensor([[1 + 1e-6, 0.0]], dtype=torch.float64)
        bins = reliability(probs, torch.tensor([0]), 20, closed)
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
def test_is_the_slow_definition(seed, num, classes, num_bins, closed, grid, dtype):
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
    assert sum(reliability(probs, labels, num_bins, closed).counts) == num


def test_one_bin_is_accuracy_against_confidence():
    probs, labels = two_classes(0.6, 0.7, 0.8, 0.9), torch.tensor([0, 0, 1, 1])
    assert ece(probs, labels, 1) == pytest.approx(abs(0.5 - 0.75), abs=1e-15)


def test_bins_by_hand():
    bins = reliability(two_classes(0.6, 0.7, 0.95), torch.tensor([0, 1, 0]), num_bins=4)
    assert bins.edges == (0, 0.25, 0.5, 0.75, 1)
    assert bins.counts == (0, 0, 2, 1)
    assert bins.confidence == pytest.approx((0, 0, 0.65, 0.95))
    assert bins.accuracy == (0, 0, 0.5, 1)


def test_bins_travel_as_json():
    bins = reliability(two_classes(0.6, 0.7, 0.95), torch.tensor([0, 1, 0]))
    read = json.loads(json.dumps(bins.to_dict(), allow_nan=False))
    assert read == bins.to_dict()
    assert {name: len(values) for name, values in read.items()} == {
        "edges": 21,
        "counts": 20,
        "confidence": 20,
        "accuracy": 20,
    }


@pytest.mark.parametrize("function", [ece, reliability])
def test_refuses_what_is_no_binning(function):
    probs, labels = two_classes(0.6), torch.tensor([0])
    with pytest.raises(ValueError, match="at least 1 bin, got num_bins=0"):
        function(probs, labels, 0)
    with pytest.raises(ValueError, match=r"closed must be 'right' .* got 'both'"):
        function(probs, labels, 20, "both")
