"""Sharpness-aware training: maps from a closure to a closure with a sharpness-aware gradient."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.flatness.asam import ASAM
from flatbayes.flatness.fisher_sam import FisherSAM
from flatbayes.flatness.flatness import Flatness, Plain
from flatbayes.flatness.friendly_sam import FriendlySAM
from flatbayes.flatness.gaussian_smoothing import GaussianSmoothing
from flatbayes.flatness.gsam import GSAM
from flatbayes.flatness.lesam import LESAM
from flatbayes.flatness.looksam import LookSAM
from flatbayes.flatness.m_sharpness import MSharpness
from flatbayes.flatness.msam import MSAM
from flatbayes.flatness.posterior_sam import PosteriorSAM
from flatbayes.flatness.random_perturbation import RandomPerturbation
from flatbayes.flatness.sam import SAM
from flatbayes.flatness.schedules import Delayed, Periodic
from flatbayes.flatness.stable_sam import StableSAM
from flatbayes.flatness.vasso import VaSSO
from flatbayes.flatness.wsam import WSAM

__all__ = [
    "ASAM",
    "GSAM",
    "LESAM",
    "MSAM",
    "SAM",
    "WSAM",
    "Delayed",
    "FisherSAM",
    "Flatness",
    "FriendlySAM",
    "GaussianSmoothing",
    "LookSAM",
    "MSharpness",
    "Periodic",
    "Plain",
    "PosteriorSAM",
    "RandomPerturbation",
    "StableSAM",
    "VaSSO",
]

explain_old_arguments(__name__)
