"""Foundations: the shared vocabulary, and the only places that edit weights, buffers and random state."""

from flatbayes.core.types import Closure, Examples, LossFn, MakeOptimizer, State

__all__ = ["Closure", "Examples", "LossFn", "MakeOptimizer", "State"]
