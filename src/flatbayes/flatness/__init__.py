"""Sharpness-aware training: maps from a closure to a closure with a sharpness-aware gradient."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.flatness.asam import ASAM
from flatbayes.flatness.fisher_sam import FisherSAM
from flatbayes.flatness.flatness import Flatness, Plain
from flatbayes.flatness.gaussian_smoothing import GaussianSmoothing
from flatbayes.flatness.lesam import LESAM
from flatbayes.flatness.looksam import LookSAM
from flatbayes.flatness.msam import MSAM
from flatbayes.flatness.posterior_sam import PosteriorSAM
from flatbayes.flatness.random_perturbation import RandomPerturbation
from flatbayes.flatness.sam import SAM
from flatbayes.flatness.schedules import Delayed, Periodic

__all__ = [
    "ASAM",
    "LESAM",
    "MSAM",
    "SAM",
    "Delayed",
    "FisherSAM",
    "Flatness",
    "GaussianSmoothing",
    "LookSAM",
    "Periodic",
    "Plain",
    "PosteriorSAM",
    "RandomPerturbation",
]

explain_old_arguments(__name__)
