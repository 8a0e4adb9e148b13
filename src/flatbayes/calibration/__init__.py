"""Calibration on validation examples, conformal prediction, and selective prediction."""

from flatbayes.calibration.adaptive import AdaptiveConformal
from flatbayes.calibration.conformal import ConformalPredictor, GroupThreshold, fit_conformal
from flatbayes.calibration.coverage import ConformalEvaluation, CoverageEstimate
from flatbayes.calibration.map_fitting import fit_calibration
from flatbayes.calibration.maps import CalibrationMap, CalibrationMethod
from flatbayes.calibration.quantiles import conformal_quantile, conformal_rank
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.calibration.scores import APS, LAC, RAPS, ConformalScore, NormalizedResidual, QuantileResidual
from flatbayes.calibration.selective import AbstentionThreshold, fit_abstention
from flatbayes.calibration.targets import CalibrationWarning
from flatbayes.core.renames import explain_old_arguments

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "AbstentionThreshold",
    "AdaptiveConformal",
    "CalibrationMap",
    "CalibrationMethod",
    "CalibrationWarning",
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
    "fit_abstention",
    "fit_calibration",
    "fit_conformal",
]

explain_old_arguments(__name__)
