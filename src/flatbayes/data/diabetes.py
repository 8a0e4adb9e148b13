"""Scikit-learn's diabetes data: a real regression that needs no network."""

from dataclasses import dataclass

import torch

from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Diabetes(DataSource):
    """442 patients, 10 measurements of each, and how far their diabetes had come a year later (25 to 346).

    The data of Efron, Hastie, Johnstone & Tibshirani (Ann. Statist. 2004) as they come with scikit-learn, unscaled.
    """

    val_size: float = 0.2

    def read(self) -> RawSplits:
        """All of them; there is no test part, so one is split off."""
        from sklearn.datasets import load_diabetes  # here, since it is slow to import

        found = load_diabetes(scaled=False)
        part = Split(inputs=torch.from_numpy(found.data).float(), targets=torch.from_numpy(found.target).float())
        return RawSplits(unsplit=part, feature_names=tuple(found.feature_names), target_names=("progression",))
