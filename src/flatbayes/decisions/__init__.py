"""Decisions from predictions: of least expected cost, and which examples to label next."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.decisions.acquisition import sample_batch
from flatbayes.decisions.costs import compute_expected_costs, decide, mean_cost

__all__ = [
    "compute_expected_costs",
    "decide",
    "mean_cost",
    "sample_batch",
]

explain_old_arguments(__name__)
