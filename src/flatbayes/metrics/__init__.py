"""Metrics of predictive distributions: proper scoring rules, calibration, detection and selective prediction."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.metrics.calibration import ReliabilityBins, adaptive_ece, classwise_ece, ece, reliability_bins
from flatbayes.metrics.classification import accuracy, brier_score, classification_metrics, mean_iou, nll
from flatbayes.metrics.definitions import (
    CLASSIFICATION_METRICS,
    DEFINITIONS,
    DENSE_METRICS,
    HIGHER_IS_BETTER,
    METRIC_FAMILIES,
    MULTI_LABEL_METRICS,
    REGRESSION_METRICS,
    MetricDefinition,
    MetricFamily,
)
from flatbayes.metrics.detection import aupr, auroc, auroc_correct, entropy_divergence, fpr_at_tpr
from flatbayes.metrics.distances import agreement, total_variation, wasserstein_distance
from flatbayes.metrics.ensemble_size import cross_fitted_nll, ensemble_equivalent, ensemble_nlls
from flatbayes.metrics.multi_label import multi_label_metrics
from flatbayes.metrics.proportions import wilson_interval
from flatbayes.metrics.regression import (
    CoverageCurve,
    coverage_curve,
    crps,
    interval_width,
    metrics_per_target,
    miscalibration,
    regression_metrics,
    rmse,
)
from flatbayes.metrics.selective import aurc, excess_aurc, risk_coverage_curve
from flatbayes.metrics.temperature import apply_temperature, fit_temperature

__all__ = [
    "CLASSIFICATION_METRICS",
    "DEFINITIONS",
    "DENSE_METRICS",
    "HIGHER_IS_BETTER",
    "METRIC_FAMILIES",
    "MULTI_LABEL_METRICS",
    "REGRESSION_METRICS",
    "CoverageCurve",
    "MetricDefinition",
    "MetricFamily",
    "ReliabilityBins",
    "accuracy",
    "adaptive_ece",
    "agreement",
    "apply_temperature",
    "aupr",
    "aurc",
    "auroc",
    "auroc_correct",
    "brier_score",
    "classification_metrics",
    "classwise_ece",
    "coverage_curve",
    "cross_fitted_nll",
    "crps",
    "ece",
    "ensemble_equivalent",
    "ensemble_nlls",
    "entropy_divergence",
    "excess_aurc",
    "fit_temperature",
    "fpr_at_tpr",
    "interval_width",
    "mean_iou",
    "metrics_per_target",
    "miscalibration",
    "multi_label_metrics",
    "nll",
    "regression_metrics",
    "reliability_bins",
    "risk_coverage_curve",
    "rmse",
    "total_variation",
    "wasserstein_distance",
    "wilson_interval",
]

explain_old_arguments(__name__)
