"""How good a prediction is. Every metric has a definition, computed in float64, the same on every device."""

from flatbayes.metrics.calibration import (
    ReliabilityBins,
    adaptive_ece,
    classwise_ece,
    ece,
    reliability,
    wilson_interval,
)
from flatbayes.metrics.classification import classification_metrics
from flatbayes.metrics.definitions import DEFINITIONS, HIGHER_IS_BETTER
from flatbayes.metrics.detection import aupr, auroc, auroc_correct, entropy_divergence, fpr_at_tpr
from flatbayes.metrics.extra import FAMILIES
from flatbayes.metrics.regression import (
    CoverageCurve,
    coverage,
    crps,
    miscalibration,
    regression_metrics,
    rmse,
    width,
)
from flatbayes.metrics.scores import accuracy, brier, nll
from flatbayes.metrics.selective import aurc, excess_aurc, risk_coverage
from flatbayes.metrics.temperature import temperature_scaling, tempered

__all__ = [
    "DEFINITIONS",
    "FAMILIES",
    "HIGHER_IS_BETTER",
    "CoverageCurve",
    "ReliabilityBins",
    "accuracy",
    "adaptive_ece",
    "aupr",
    "aurc",
    "auroc",
    "auroc_correct",
    "brier",
    "classification_metrics",
    "classwise_ece",
    "coverage",
    "crps",
    "ece",
    "entropy_divergence",
    "excess_aurc",
    "fpr_at_tpr",
    "miscalibration",
    "nll",
    "regression_metrics",
    "reliability",
    "risk_coverage",
    "rmse",
    "temperature_scaling",
    "tempered",
    "width",
    "wilson_interval",
]
