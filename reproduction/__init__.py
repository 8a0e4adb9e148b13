"""The tables of the paper: their cells as configurations, what was published, and ours beside it."""

from reproduction.configs import TableCell, list_tables, load_cells
from reproduction.cost import TrainingCost, estimate_cost
from reproduction.published import REFERENCES, PublishedResult, load_published_results
from reproduction.report import describe_differences, make_comparison_rows
from reproduction.table_config import TableConfig

__all__ = [
    "REFERENCES",
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
