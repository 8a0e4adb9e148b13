"""Training: one loop for every posterior and every flatness."""

from flatbayes.training.fit import Interrupted, fit
from flatbayes.training.recipe import Recipe
from flatbayes.training.rehearsal import rehearse
from flatbayes.training.schedules import Constant, Cosine, Cyclical, Polynomial, Schedule, SWALinear
from flatbayes.training.watch import Curves, Watch

__all__ = [
    "Constant",
    "Cosine",
    "Curves",
    "Cyclical",
    "Interrupted",
    "Polynomial",
    "Recipe",
    "SWALinear",
    "Schedule",
    "Watch",
    "fit",
    "rehearse",
]
