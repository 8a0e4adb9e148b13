"""Flat against plain over seeds: runs, paired statistics."""

from flatbayes.experiments.comparison import Comparison, claim_folder, execute_runs, write_results
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.method import Method
from flatbayes.experiments.run import ExperimentRun
from flatbayes.experiments.selection import SelectionTrial, select_methods
from flatbayes.experiments.statistics import PairedComparison, compare_pairs, summarize_runs
from flatbayes.experiments.tuning import TuningResult, default_ranges, is_higher_better, tune_hyperparameters

__all__ = [
    "Comparison",
    "EvaluationConfig",
    "ExperimentRun",
    "Method",
    "PairedComparison",
    "SelectionTrial",
    "TuningResult",
    "claim_folder",
    "compare_pairs",
    "default_ranges",
    "execute_runs",
    "is_higher_better",
    "select_methods",
    "summarize_runs",
    "tune_hyperparameters",
    "write_results",
]
