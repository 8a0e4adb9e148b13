"""Posteriors as estimators of scikit-learn, which is imported by nothing else here."""

from flatbayes.estimators.classifier import FlatBayesClassifier
from flatbayes.estimators.regressor import FlatBayesRegressor

__all__ = ["FlatBayesClassifier", "FlatBayesRegressor"]
