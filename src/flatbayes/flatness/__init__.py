"""Axis B: where a closure is asked for its gradient."""

from flatbayes.flatness.asam import ASAM
from flatbayes.flatness.fisher_sam import FisherSAM
from flatbayes.flatness.flatness import Flatness
from flatbayes.flatness.lesam import LESAM
from flatbayes.flatness.looksam import LookSAM
from flatbayes.flatness.msam import MSAM
from flatbayes.flatness.plain import Plain
from flatbayes.flatness.posterior_sam import PosteriorSAM
from flatbayes.flatness.random import Random
from flatbayes.flatness.sam import SAM
from flatbayes.flatness.smoothing import Smoothing
from flatbayes.flatness.sometimes import Every, Late

__all__ = [
    "ASAM",
    "LESAM",
    "MSAM",
    "SAM",
    "Every",
    "FisherSAM",
    "Flatness",
    "Late",
    "LookSAM",
    "Plain",
    "PosteriorSAM",
    "Random",
    "Smoothing",
]
