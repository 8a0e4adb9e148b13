"""Sharpness-aware Bayesian posteriors for any PyTorch model."""

from flatbayes.comparison import Comparison
from flatbayes.core import Closure, State
from flatbayes.data import (
    CIFAR10,
    Dataset,
    Digits,
    ImageFolder,
    ImageParquet,
    Npz,
    Part,
    Source,
    Table,
)
from flatbayes.flatness import ASAM, SAM, FisherSAM, Flatness, Plain, PosteriorSAM, Random
from flatbayes.likelihoods import Categorical, CategoricalPredictive, Likelihood, Predictive
from flatbayes.models import MLP, ConvNet, PreResNet, WideResNet
from flatbayes.posteriors import LRT, SGHMC, SGLD, SGVB, SWAG, Ensemble, MCDropout, Point, Posterior
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import Constant, Cosine, Cyclical, Interrupted, Polynomial, Recipe, Schedule, SWALinear, fit

__all__ = [
    "ASAM",
    "CIFAR10",
    "LRT",
    "MLP",
    "SAM",
    "SGHMC",
    "SGLD",
    "SGVB",
    "SWAG",
    "Categorical",
    "CategoricalPredictive",
    "Closure",
    "Comparison",
    "Constant",
    "ConvNet",
    "Cosine",
    "Cyclical",
    "Dataset",
    "Digits",
    "Ensemble",
    "FisherSAM",
    "FittedPosterior",
    "Flatness",
    "ImageFolder",
    "ImageParquet",
    "Interrupted",
    "Likelihood",
    "MCDropout",
    "Npz",
    "Part",
    "Plain",
    "Point",
    "Polynomial",
    "Posterior",
    "PosteriorSAM",
    "PreResNet",
    "Predictive",
    "Random",
    "Recipe",
    "SWALinear",
    "Schedule",
    "Source",
    "State",
    "Table",
    "WideResNet",
    "evaluate",
    "fit",
]
