"""Conformal prediction: sets and intervals with a coverage that is guaranteed for any posterior."""

from flatbayes.calibration.conformal import ConformalPredictor, GroupThreshold, fit_conformal
from flatbayes.calibration.coverage import ConformalEvaluation, CoverageEstimate
from flatbayes.calibration.quantiles import conformal_quantile, conformal_rank
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.calibration.scores import APS, LAC, RAPS, ConformalScore, NormalizedResidual, QuantileResidual
from flatbayes.core.renames import explain_old_arguments

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "ConformalEvaluation",
    "ConformalPredictor",
    "ConformalScore",
    "CoverageEstimate",
    "GroupThreshold",
    "NormalizedResidual",
    "PredictionIntervals",
    "PredictionSets",
    "QuantileResidual",
    "conformal_quantile",
    "conformal_rank",
    "fit_conformal",
]

explain_old_arguments(__name__)
