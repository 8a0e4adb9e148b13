"""How good a prediction is. Every metric has a definition, computed in float64, the same on every device."""

from flatbayes.metrics.calibration import ReliabilityBins, ece, reliability
from flatbayes.metrics.classification import DEFINITIONS, HIGHER_IS_BETTER, classification_metrics
from flatbayes.metrics.detection import auroc, auroc_correct
from flatbayes.metrics.scores import accuracy, brier, nll

__all__ = [
    "DEFINITIONS",
    "HIGHER_IS_BETTER",
    "ReliabilityBins",
    "accuracy",
    "auroc",
    "auroc_correct",
    "brier",
    "classification_metrics",
    "ece",
    "nll",
    "reliability",
]
