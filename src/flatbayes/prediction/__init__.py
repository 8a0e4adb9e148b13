"""Networks times batches: predictions with uncertainty from a fitted posterior."""

from flatbayes.prediction.evaluation import Evaluation, evaluate
from flatbayes.prediction.fitted import FittedPosterior

__all__ = ["Evaluation", "FittedPosterior", "evaluate"]
