"""The cells of the paper's tables: files that `flatbayes fit --config` takes, one for each."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from flatbayes.core.spec import build
from flatbayes.data import Source
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training import Recipe
from flatbayes.training.model import ModelFactory

PARTS = ("data", "model", "posterior", "flatness", "draws")
TWINS = ("plain", "flat")
METHODS = ("map", "swa", "swag-diag", "swag", "mc-dropout", "ensemble", "sgld", "sgvb", "sgvb-lrt")
"""In the order of the tables."""


@dataclass(frozen=True)
class Cell:
    """One network, method and twin of a table.

    Attributes:
        table: The data set that the table is about.
        network: Short name of the network.
        method: Short name of the posterior.
        twin: `plain` or `flat`.
        source: The data.
        model: Builds the network.
        posterior: Axis A.
        flatness: Axis B.
        recipe: How it is trained.
        draws: Networks averaged in a prediction.
    """

    table: str
    network: str
    method: str
    twin: str
    source: Source
    model: ModelFactory
    posterior: Posterior
    flatness: Flatness
    recipe: Recipe
    draws: int

    @property
    def name(self) -> str:
        """That of its file."""
        return f"{self.network}-{self.method}-{self.twin}"

    @property
    def called(self) -> str:
        """What it and its twin are called in a comparison."""
        return f"{self.network} {self.method}"


def folder() -> Path:
    """Where the tables are: part of an installed package, or `configs/paper` of the repository."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "configs" / "paper"


def table_names() -> list[str]:
    """The tables that there are."""
    return sorted(path.name for path in folder().iterdir() if path.is_dir())


def cells_of(table: str, pattern: str = "*") -> list[Cell]:
    """The cells of a table whose names match a pattern of a shell, such as `wrn28x10-swag-*`.

    Raises:
        ValueError: There is no such table, or no cell matches.
    """
    if table not in table_names():
        raise ValueError(f"There is no table {table!r}. Known: {', '.join(table_names())}.")
    found = [read(path) for path in sorted((folder() / table).glob("*.yaml"))]
    found.sort(key=lambda cell: (cell.network, METHODS.index(cell.method), TWINS.index(cell.twin)))
    chosen = [cell for cell in found if fnmatchcase(cell.name, pattern)]
    if not chosen:
        raise ValueError(f"No cell of {table} matches {pattern!r}. Known: {', '.join(cell.name for cell in found)}.")
    return chosen


def read(path: Path) -> Cell:
    """The cell in a file."""
    network, _, rest = path.stem.partition("-")
    method, _, twin = rest.rpartition("-")
    options = content(path)
    parts = {name: build(options[name], bind=name == "model") for name in PARTS}
    return Cell(
        table=path.parent.name,
        network=network,
        method=method,
        twin=twin,
        source=parts.pop("data"),
        recipe=recipe_of({name: value for name, value in options.items() if name not in PARTS}),
        **parts,
    )


def recipe_of(options: dict[str, Any]) -> Recipe:
    """The recipe in options of the command line."""
    return Recipe(**{name: build(value, bind=name == "optimizer") for name, value in options.items()})


def content(path: Path) -> dict[str, Any]:
    """What a file says."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found
