"""Training: one loop for every posterior and every flatness."""

from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.fit import Interrupted, fit
from flatbayes.training.recipe import FINE_TUNING, Recipe
from flatbayes.training.rehearsal import rehearse
from flatbayes.training.schedules import Constant, Cosine, Cyclical, Polynomial, Schedule, SWALinear
from flatbayes.training.watching.logs import Logged, make_logger
from flatbayes.training.watching.watch import Curves, Lines, Watch, Watches

__all__ = [
    "FINE_TUNING",
    "Checkpoints",
    "Constant",
    "Cosine",
    "Curves",
    "Cyclical",
    "Interrupted",
    "Lines",
    "Logged",
    "Polynomial",
    "Recipe",
    "SWALinear",
    "Schedule",
    "Watch",
    "Watches",
    "fit",
    "make_logger",
    "rehearse",
]
