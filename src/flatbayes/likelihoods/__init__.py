"""Likelihoods: losses for training, and predictive distributions of many networks."""

from flatbayes.core.constant_scale import ConstantScale
from flatbayes.core.renames import explain_old_arguments
from flatbayes.likelihoods.bernoulli import Bernoulli
from flatbayes.likelihoods.bernoulli_predictive import BernoulliPredictive
from flatbayes.likelihoods.categorical import Categorical
from flatbayes.likelihoods.categorical_predictive import CategoricalPredictive
from flatbayes.likelihoods.custom import Custom
from flatbayes.likelihoods.dense_categorical import DenseCategorical
from flatbayes.likelihoods.dense_categorical_predictive import DenseCategoricalPredictive
from flatbayes.likelihoods.gaussian import Gaussian
from flatbayes.likelihoods.gaussian_predictive import GaussianPredictive
from flatbayes.likelihoods.likelihood import Likelihood, PredictionTable, Predictive
from flatbayes.likelihoods.recalibrated_predictive import RecalibratedPredictive

__all__ = [
    "Bernoulli",
    "BernoulliPredictive",
    "Categorical",
    "CategoricalPredictive",
    "ConstantScale",
    "Custom",
    "DenseCategorical",
    "DenseCategoricalPredictive",
    "Gaussian",
    "GaussianPredictive",
    "Likelihood",
    "PredictionTable",
    "Predictive",
    "RecalibratedPredictive",
]

explain_old_arguments(__name__)
