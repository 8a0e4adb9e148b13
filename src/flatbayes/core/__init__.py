"""Foundations: shared types, training progress, and the only code that edits weights, buffers and random state."""

from flatbayes.core.context import subset_batch
from flatbayes.core.progress import TrainingProgress
from flatbayes.core.renames import explain_old_arguments
from flatbayes.core.types import Closure, Examples, LossFn, OptimizerFactory, State

__all__ = ["Closure", "Examples", "LossFn", "OptimizerFactory", "State", "TrainingProgress", "subset_batch"]

explain_old_arguments(__name__)
