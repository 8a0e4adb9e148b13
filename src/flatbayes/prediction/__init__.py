"""Networks times batches: predictions with uncertainty from a fitted posterior."""

from flatbayes.prediction.evaluation import Evaluation, evaluate
from flatbayes.prediction.fitted import FittedPosterior, check_num_draws

__all__ = ["Evaluation", "FittedPosterior", "check_num_draws", "evaluate"]
