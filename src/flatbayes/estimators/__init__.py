"""Posteriors as scikit-learn estimators: `FlatBayesClassifier` and `FlatBayesRegressor`."""

from flatbayes.estimators.classifier import FlatBayesClassifier
from flatbayes.estimators.regressor import FlatBayesRegressor

__all__ = ["FlatBayesClassifier", "FlatBayesRegressor"]
