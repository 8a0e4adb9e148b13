"""Cells of the paper's tables, one YAML file each with options of `flatbayes fit`."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from flatbayes.core.spec import instantiate
from flatbayes.data import DataSource
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training import TrainingConfig
from flatbayes.training.model_builder import ModelFactory

COMPONENT_KEYS = ("data", "model", "posterior", "flatness", "num_draws")
VARIANTS = ("plain", "flat")
TABLES_DIR = Path(__file__).parent / "tables"
METHOD_ORDER = ("map", "swa", "swag-diag", "swag", "mc-dropout", "ensemble", "sgld", "sgvb", "sgvb-lrt")
"""Methods in the order of the tables."""


@dataclass(frozen=True)
class TableCell:
    """One network and method of a table, trained plainly or with flatness.

    Attributes:
        table: Name of the table, which is that of its data set.
        network: Short name of the network.
        method: Short name of the posterior.
        variant: `plain` or `flat`.
        source: The data.
        model: Builds the network.
        posterior: The posterior.
        flatness: The flatness.
        config: The training configuration.
        num_draws: Networks averaged in a prediction.
    """

    table: str
    network: str
    method: str
    variant: str
    source: DataSource
    model: ModelFactory
    posterior: Posterior
    flatness: Flatness
    config: TrainingConfig
    num_draws: int

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return f"{self.network}-{self.method}-{self.variant}"

    @property
    def posterior_name(self) -> str:
        """Name of the plain and the flat variant in a comparison."""
        return f"{self.network} {self.method}"


def list_tables() -> list[str]:
    """Names of the tables."""
    return sorted(path.name for path in TABLES_DIR.iterdir() if path.is_dir())


def load_cells(table: str, pattern: str = "*") -> list[TableCell]:
    """Load the cells of a table.

    Args:
        table: Name of the table.
        pattern: Shell pattern of cell names, such as `wrn28x10-swag-*`.

    Raises:
        ValueError: There is no such table, or no cell matches.
    """
    if table not in list_tables():
        raise ValueError(f"There is no table {table!r}. Known: {', '.join(list_tables())}.")
    cells = [load_cell(path) for path in sorted((TABLES_DIR / table).glob("*.yaml"))]
    cells.sort(key=lambda cell: (cell.network, METHOD_ORDER.index(cell.method), VARIANTS.index(cell.variant)))
    matches = [cell for cell in cells if fnmatchcase(cell.name, pattern)]
    if not matches:
        raise ValueError(f"No cell of {table} matches {pattern!r}. Known: {', '.join(cell.name for cell in cells)}.")
    return matches


def load_cell(path: Path) -> TableCell:
    """Load a cell from its file `<table>/<network>-<method>-<variant>.yaml`."""
    network, _, rest = path.stem.partition("-")
    method, _, variant = rest.rpartition("-")
    options = load_yaml(path)
    components = {name: instantiate(options[name], bind=name == "model") for name in COMPONENT_KEYS}
    return TableCell(
        table=path.parent.name,
        network=network,
        method=method,
        variant=variant,
        source=components.pop("data"),
        config=make_training_config({name: value for name, value in options.items() if name not in COMPONENT_KEYS}),
        **components,
    )


def make_training_config(options: dict[str, Any]) -> TrainingConfig:
    """The training configuration in options of the command line."""
    values = {name: instantiate(value, bind=name == "optimizer") for name, value in options.items()}
    return TrainingConfig().with_options(**values)


def load_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file with a mapping."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
