"""Flat against plain over seeds: runs, paired statistics."""

from flatbayes.comparison.compare import Comparison, claim, execute, write_results
from flatbayes.comparison.measures import Measures
from flatbayes.comparison.method import Method
from flatbayes.comparison.selection import Trial, select
from flatbayes.comparison.statistics import Paired, paired, summarise
from flatbayes.comparison.task import Task
from flatbayes.comparison.tuning import Tuned, direction, tune, usual_ranges

__all__ = [
    "Comparison",
    "Measures",
    "Method",
    "Paired",
    "Task",
    "Trial",
    "Tuned",
    "claim",
    "direction",
    "execute",
    "paired",
    "select",
    "summarise",
    "tune",
    "usual_ranges",
    "write_results",
]
