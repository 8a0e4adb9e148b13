"""The cells of the paper's tables: files that `flatbayes fit --config` takes, one for each."""

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
"""In the order of the tables."""


@dataclass(frozen=True)
class TableCell:
    """One network, method and twin of a table.

    Attributes:
        table: The data set that the table is about.
        network: Short name of the network.
        method: Short name of the posterior.
        variant: `plain` or `flat`.
        source: The data.
        model: Builds the network.
        posterior: Axis A.
        flatness: Axis B.
        config: How it is trained.
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
        """That of its file."""
        return f"{self.network}-{self.method}-{self.variant}"

    @property
    def posterior_name(self) -> str:
        """What it and its twin are called in a comparison."""
        return f"{self.network} {self.method}"


def list_tables() -> list[str]:
    """The tables that there are."""
    return sorted(path.name for path in TABLES_DIR.iterdir() if path.is_dir())


def load_cells(table: str, pattern: str = "*") -> list[TableCell]:
    """The cells of a table whose names match a pattern of a shell, such as `wrn28x10-swag-*`.

    Raises:
        ValueError: There is no such table, or no cell matches.
    """
    if table not in list_tables():
        raise ValueError(f"There is no table {table!r}. Known: {', '.join(list_tables())}.")
    found = [load_cell(path) for path in sorted((TABLES_DIR / table).glob("*.yaml"))]
    found.sort(key=lambda cell: (cell.network, METHOD_ORDER.index(cell.method), VARIANTS.index(cell.variant)))
    chosen = [cell for cell in found if fnmatchcase(cell.name, pattern)]
    if not chosen:
        raise ValueError(f"No cell of {table} matches {pattern!r}. Known: {', '.join(cell.name for cell in found)}.")
    return chosen


def load_cell(path: Path) -> TableCell:
    """The cell in a file."""
    network, _, rest = path.stem.partition("-")
    method, _, twin = rest.rpartition("-")
    options = load_yaml(path)
    parts = {name: instantiate(options[name], bind=name == "model") for name in COMPONENT_KEYS}
    return TableCell(
        table=path.parent.name,
        network=network,
        method=method,
        variant=twin,
        source=parts.pop("data"),
        config=make_training_config({name: value for name, value in options.items() if name not in COMPONENT_KEYS}),
        **parts,
    )


def make_training_config(options: dict[str, Any]) -> TrainingConfig:
    """The recipe in options of the command line."""
    values = {name: instantiate(value, bind=name == "optimizer") for name, value in options.items()}
    return TrainingConfig().with_options(**values)


def load_yaml(path: Path) -> dict[str, Any]:
    """What a file says."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found
