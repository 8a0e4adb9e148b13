"""The tables of the paper: their cells as configurations, what was published, and ours beside it."""

from flatbayes.paper.cells import Cell, cells_of, table_names
from flatbayes.paper.cost import Cost, cost_of
from flatbayes.paper.ours import beside, remarks
from flatbayes.paper.plan import Plan
from flatbayes.paper.published import SOURCES, Figure, figures_of

__all__ = [
    "SOURCES",
    "Cell",
    "Cost",
    "Figure",
    "Plan",
    "beside",
    "cells_of",
    "cost_of",
    "figures_of",
    "remarks",
    "table_names",
]
