"""Foundations: the shared vocabulary, and the only places that edit weights, buffers and random state."""

from flatbayes.core.course import Course
from flatbayes.core.share import asked_part
from flatbayes.core.types import Closure, Examples, LossFn, MakeOptimizer, State

__all__ = ["Closure", "Course", "Examples", "LossFn", "MakeOptimizer", "State", "asked_part"]
