"""Comparisons of flat with plain training over seeds: runs, paired statistics, selection and tuning."""

from typing import TYPE_CHECKING

__all__ = [
    "Comparison",
    "ComparisonResult",
    "EvaluationConfig",
    "ExperimentRun",
    "FitOptions",
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

if TYPE_CHECKING:
    from flatbayes.experiments.comparison import Comparison, compare
    from flatbayes.experiments.evaluations import EvaluationConfig
    from flatbayes.experiments.fit_options import FitOptions
    from flatbayes.experiments.method import Method
    from flatbayes.experiments.parallel import execute_runs
    from flatbayes.experiments.ranges import default_ranges
    from flatbayes.experiments.results import ComparisonResult, SummaryRow
    from flatbayes.experiments.run import ExperimentRun
    from flatbayes.experiments.run_folder import claim_folder
    from flatbayes.experiments.run_result import RunResult
    from flatbayes.experiments.selection import SelectionRecord, SelectionTrial, select_methods
    from flatbayes.experiments.statistics import PairedComparison, compare_pairs
    from flatbayes.experiments.summary import summarize_runs, write_results
    from flatbayes.experiments.tuning import is_higher_better, tune, tune_hyperparameters
    from flatbayes.experiments.tuning_result import TuningResult
else:
    from flatbayes.core.lazy import export_lazily

    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "flatbayes.experiments.comparison": "Comparison compare",
            "flatbayes.experiments.evaluations": "EvaluationConfig",
            "flatbayes.experiments.fit_options": "FitOptions",
            "flatbayes.experiments.method": "Method",
            "flatbayes.experiments.parallel": "execute_runs",
            "flatbayes.experiments.results": "ComparisonResult SummaryRow",
            "flatbayes.experiments.run": "ExperimentRun",
            "flatbayes.experiments.run_folder": "claim_folder",
            "flatbayes.experiments.run_result": "RunResult",
            "flatbayes.experiments.selection": "SelectionRecord SelectionTrial select_methods",
            "flatbayes.experiments.statistics": "PairedComparison compare_pairs",
            "flatbayes.experiments.summary": "summarize_runs write_results",
            "flatbayes.experiments.ranges": "default_ranges",
            "flatbayes.experiments.tuning": "is_higher_better tune tune_hyperparameters",
            "flatbayes.experiments.tuning_result": "TuningResult",
        },
    )
