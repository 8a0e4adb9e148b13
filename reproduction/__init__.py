"""Reproduction of the paper's tables: cells as configurations, published results, and the comparison with ours."""

from reproduction.configs import TableCell, list_tables, load_cells
from reproduction.cost import TrainingCost, estimate_cost
from reproduction.published import REFERENCES, PublishedResult, load_published_results
from reproduction.report import ComparisonRow, describe_differences, make_comparison_rows
from reproduction.table_config import TableConfig

__all__ = [
    "REFERENCES",
    "ComparisonRow",
    "PublishedResult",
    "TableCell",
    "TableConfig",
    "TrainingCost",
    "describe_differences",
    "estimate_cost",
    "list_tables",
    "load_cells",
    "load_published_results",
    "make_comparison_rows",
]
