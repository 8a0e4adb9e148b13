"""Training: one loop for every posterior and every flatness, on one device or several."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.training.callbacks.callback import Callback, CallbackList, History
from flatbayes.training.callbacks.console import ConsoleLogger
from flatbayes.training.callbacks.loggers import MetricLogger, make_logger
from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.config import FINE_TUNING, TrainingConfig
from flatbayes.training.config_groups import CollectionConfig, DistributionConfig, OptimizationConfig, PrecisionConfig
from flatbayes.training.cross_conformal import CrossConformalPosterior, fit_cross_conformal
from flatbayes.training.draw_choice import tune_draws
from flatbayes.training.dry_run import dry_run
from flatbayes.training.fit import fit
from flatbayes.training.loop import DivergenceWarning
from flatbayes.training.members import Interrupted
from flatbayes.training.schedules import Constant, Cosine, Cyclical, Polynomial, Schedule, SWALinear
from flatbayes.training.sharing import fit_together

__all__ = [
    "FINE_TUNING",
    "Callback",
    "CallbackList",
    "Checkpoints",
    "CollectionConfig",
    "ConsoleLogger",
    "Constant",
    "Cosine",
    "CrossConformalPosterior",
    "Cyclical",
    "DistributionConfig",
    "DivergenceWarning",
    "History",
    "Interrupted",
    "MetricLogger",
    "OptimizationConfig",
    "Polynomial",
    "PrecisionConfig",
    "SWALinear",
    "Schedule",
    "TrainingConfig",
    "dry_run",
    "fit",
    "fit_cross_conformal",
    "fit_together",
    "make_logger",
    "tune_draws",
]

explain_old_arguments(__name__)
