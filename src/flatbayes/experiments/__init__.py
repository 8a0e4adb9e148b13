"""Comparisons of flat with plain training over seeds: runs, paired statistics, selection and tuning."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.experiments.comparison import Comparison, compare, write_results
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.method import Method
from flatbayes.experiments.parallel import execute_runs
from flatbayes.experiments.results import ComparisonResult, SummaryRow
from flatbayes.experiments.run import ExperimentRun
from flatbayes.experiments.run_folder import claim_folder
from flatbayes.experiments.run_result import RunResult
from flatbayes.experiments.selection import SelectionRecord, SelectionTrial, select_methods
from flatbayes.experiments.statistics import PairedComparison, compare_pairs
from flatbayes.experiments.summary import summarize_runs
from flatbayes.experiments.tuning import default_ranges, is_higher_better, tune, tune_hyperparameters
from flatbayes.experiments.tuning_result import TuningResult

__all__ = [
    "Comparison",
    "ComparisonResult",
    "EvaluationConfig",
    "ExperimentRun",
    "Method",
    "PairedComparison",
    "RunResult",
    "SelectionRecord",
    "SelectionTrial",
    "SummaryRow",
    "TuningResult",
    "claim_folder",
    "compare",
    "compare_pairs",
    "default_ranges",
    "execute_runs",
    "is_higher_better",
    "select_methods",
    "summarize_runs",
    "tune",
    "tune_hyperparameters",
    "write_results",
]

explain_old_arguments(__name__)
