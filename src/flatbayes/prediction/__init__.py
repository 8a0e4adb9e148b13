"""Networks times batches: predictions with uncertainty from a fitted posterior."""

from flatbayes.prediction.deploy import CompiledPosterior
from flatbayes.prediction.evaluation import Evaluation, evaluate
from flatbayes.prediction.export import export_onnx, export_torch, onnx_difference
from flatbayes.prediction.fitted import FittedPosterior, check_num_draws
from flatbayes.prediction.shift import evaluate_corruptions, evaluate_ood, evaluate_recalibration

__all__ = [
    "CompiledPosterior",
    "Evaluation",
    "FittedPosterior",
    "check_num_draws",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_ood",
    "evaluate_recalibration",
    "export_onnx",
    "export_torch",
    "onnx_difference",
]
