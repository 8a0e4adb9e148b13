"""Foundations: the shared vocabulary, and the only places that edit weights, buffers and random state."""

from flatbayes.core.types import Closure, MakeOptimizer, State

__all__ = ["Closure", "MakeOptimizer", "State"]
