"""Flat against plain over seeds: runs, paired statistics."""

from flatbayes.comparison.compare import Comparison
from flatbayes.comparison.statistics import Paired, Spread, paired, summarise
from flatbayes.comparison.task import Task

__all__ = ["Comparison", "Paired", "Spread", "Task", "paired", "summarise"]
