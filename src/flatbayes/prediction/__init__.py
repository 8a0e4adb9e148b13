"""Bayesian model averaging: predictions with uncertainty from a fitted posterior, their evaluation and deployment."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.prediction.calibrated import replace_calibration
from flatbayes.prediction.conformal import ConformalPosterior, conformalize
from flatbayes.prediction.deploy import CompiledPosterior
from flatbayes.prediction.evaluation import Evaluation, evaluate
from flatbayes.prediction.export import export_onnx, export_torch, onnx_difference
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.recalibration import RecalibrationResult, calibrate, evaluate_recalibration
from flatbayes.prediction.sampling import NetworkSampler, check_num_draws
from flatbayes.prediction.shift import (
    CorruptionMetrics,
    DetectionMetrics,
    OODEvaluation,
    evaluate_corruptions,
    evaluate_ood,
)
from flatbayes.prediction.training_inputs import InputDistance

__all__ = [
    "CompiledPosterior",
    "ConformalPosterior",
    "CorruptionMetrics",
    "DetectionMetrics",
    "Evaluation",
    "FittedPosterior",
    "InputDistance",
    "NetworkSampler",
    "OODEvaluation",
    "RecalibrationResult",
    "calibrate",
    "check_num_draws",
    "conformalize",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_ood",
    "evaluate_recalibration",
    "export_onnx",
    "export_torch",
    "onnx_difference",
    "replace_calibration",
]

explain_old_arguments(__name__)
