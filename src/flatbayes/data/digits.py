"""Scikit-learn's handwritten digits: real data that needs no network."""

from dataclasses import dataclass

import torch

from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """The 1,797 handwritten digits of 8 x 8 grey pixels (values 0 to 16) that come with scikit-learn.

    By default half of them are for testing, and training takes 500: few enough for uncertainty to matter.
    """

    train_size: int | None = 500
    val_size: float = 0.4
    test_size: float = 0.5

    def read(self) -> RawSplits:
        """All of them; there is no test part, so one is split off."""
        from sklearn.datasets import load_digits  # here, since it is slow to import

        images, labels = load_digits(return_X_y=True)
        inputs = torch.from_numpy(images.astype("uint8")).reshape(-1, 1, 8, 8)
        part = Split(inputs=inputs, targets=torch.from_numpy(labels).long())
        return RawSplits(unsplit=part, class_names=tuple(str(digit) for digit in range(10)))
