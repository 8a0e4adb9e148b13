"""Axis A: what is done with the gradients, and how networks are drawn afterwards."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.posteriors.blob import BLoB
from flatbayes.posteriors.bsam import BSAM
from flatbayes.posteriors.ensemble import Ensemble
from flatbayes.posteriors.entropy_mcmc import EntropyMCMC
from flatbayes.posteriors.ivon import IVON
from flatbayes.posteriors.laplace import Laplace
from flatbayes.posteriors.lrt import LRT
from flatbayes.posteriors.map import MAP
from flatbayes.posteriors.mc_dropout import MCDropout
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.sghmc import SGHMC
from flatbayes.posteriors.sgld import SGLD
from flatbayes.posteriors.sgvb import SGVB
from flatbayes.posteriors.svgd import SVGD
from flatbayes.posteriors.swag import SWAG
from flatbayes.posteriors.tfb import TFB

__all__ = [
    "BSAM",
    "IVON",
    "LRT",
    "MAP",
    "SGHMC",
    "SGLD",
    "SGVB",
    "SVGD",
    "SWAG",
    "TFB",
    "BLoB",
    "Ensemble",
    "EntropyMCMC",
    "Laplace",
    "MCDropout",
    "Posterior",
]

explain_old_arguments(__name__)
