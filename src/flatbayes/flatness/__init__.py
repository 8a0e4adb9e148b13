"""Axis B: where a closure is asked for its gradient."""

from flatbayes.flatness.asam import ASAM
from flatbayes.flatness.fisher_sam import FisherSAM
from flatbayes.flatness.flatness import Flatness
from flatbayes.flatness.plain import Plain
from flatbayes.flatness.posterior_sam import PosteriorSAM
from flatbayes.flatness.random import Random
from flatbayes.flatness.sam import SAM

__all__ = ["ASAM", "SAM", "FisherSAM", "Flatness", "Plain", "PosteriorSAM", "Random"]
