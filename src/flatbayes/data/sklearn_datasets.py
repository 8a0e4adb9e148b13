"""Datasets that come with scikit-learn: `Digits` (classification) and `Diabetes` (regression)."""

from dataclasses import dataclass

import torch

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
        from sklearn.datasets import load_digits  # slow to import

        images, labels = load_digits(return_X_y=True)
        inputs = torch.from_numpy(images.astype("uint8")).reshape(-1, 1, 8, 8)
        split = Split(inputs=inputs, targets=torch.from_numpy(labels).long())
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
        from sklearn.datasets import load_diabetes  # slow to import

        bunch = load_diabetes(scaled=False)
        split = Split(inputs=torch.from_numpy(bunch.data), targets=torch.from_numpy(bunch.target))
        return RawSplits(unsplit=split, feature_names=tuple(bunch.feature_names), target_names=("progression",))
