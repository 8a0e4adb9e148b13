"""Datasets that come with scikit-learn: `Digits` (classification) and `Diabetes` (regression).

Their files are read without an import of scikit-learn, which takes longer than a small training.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """1,797 grayscale images of handwritten digits, 8 x 8 pixels with values from 0 to 16.

    By default half of the images are the test split and 500 are for training: few enough for uncertainty to matter.

    Examples:
        >>> splits = Digits(train_size=100).load(seed=0)
        >>> splits.train.inputs.shape, splits.num_classes
        (torch.Size([100, 1, 8, 8]), 10)
    """

    train_size: int | None = 500
    val_size: float = 0.4
    test_size: float = 0.5

    def read(self) -> RawSplits:
        """Read all images as one unsplit set."""
        table = read_bundled_table("digits.csv.gz", delimiter=",")
        inputs = torch.from_numpy(table[:, :-1].astype("uint8")).reshape(-1, 1, 8, 8)
        split = Split(inputs=inputs, targets=torch.from_numpy(table[:, -1]).long())
        return RawSplits(unsplit=split, class_names=tuple(str(digit) for digit in range(10)))


@dataclass(frozen=True, kw_only=True)
class Diabetes(DataSource):
    """442 patients with 10 unscaled measurements; the target is disease progression after one year (25 to 346).

    The data of Efron, Hastie, Johnstone & Tibshirani, "Least angle regression" (Ann. Statist. 2004).

    Examples:
        >>> splits = Diabetes().load(seed=0)
        >>> splits.is_regression, splits.input_shape, len(splits.train)
        (True, (10,), 283)
    """

    val_size: float = 0.2

    def read(self) -> RawSplits:
        """Read all patients as one unsplit set."""
        inputs, targets = (read_bundled_table(f"diabetes_{name}.csv.gz") for name in ("data_raw", "target"))
        split = Split(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))
        return RawSplits(unsplit=split, feature_names=DIABETES_FEATURES, target_names=("progression",))


DIABETES_FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def read_bundled_table(name: str, delimiter: str | None = None) -> NDArray[np.float64]:
    """Read a table of numbers that comes with scikit-learn.

    Raises:
        ImportError: scikit-learn is not installed, or has no such file.
    """
    spec = find_spec("sklearn")  # without importing it
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder, "datasets", "data", name)
        if path.is_file():
            return np.loadtxt(path, delimiter=delimiter)
    raise ImportError(f"The data set {name} of scikit-learn is missing. Install it: pip install scikit-learn")
