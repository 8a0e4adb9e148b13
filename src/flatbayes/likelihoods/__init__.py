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
from flatbayes.likelihoods.distribution_likelihood import DistributionLikelihood
from flatbayes.likelihoods.distribution_predictive import DistributionPredictive
from flatbayes.likelihoods.gaussian import Gaussian
from flatbayes.likelihoods.gaussian_predictive import GaussianPredictive
from flatbayes.likelihoods.likelihood import Likelihood, PredictionTable, Predictive
from flatbayes.likelihoods.number_predictive import NumberPredictive
from flatbayes.likelihoods.recalibrated_predictive import RecalibratedPredictive
from flatbayes.likelihoods.zero_inflated import ZeroInflated

__all__ = [
    "Bernoulli",
    "BernoulliPredictive",
    "Categorical",
    "CategoricalPredictive",
    "ConstantScale",
    "Custom",
    "DenseCategorical",
    "DenseCategoricalPredictive",
    "DistributionLikelihood",
    "DistributionPredictive",
    "Gaussian",
    "GaussianPredictive",
    "Likelihood",
    "NumberPredictive",
    "PredictionTable",
    "Predictive",
    "RecalibratedPredictive",
    "ZeroInflated",
]

explain_old_arguments(__name__)
