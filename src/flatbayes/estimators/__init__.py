"""Posteriors as scikit-learn estimators: `FlatBayesClassifier` and `FlatBayesRegressor`."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.estimators.classifier import FlatBayesClassifier
from flatbayes.estimators.regressor import FlatBayesRegressor

__all__ = ["FlatBayesClassifier", "FlatBayesRegressor"]

explain_old_arguments(__name__)
