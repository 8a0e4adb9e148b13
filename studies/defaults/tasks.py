"""The data sets of the benchmark, their splits, and the two halves.

The rule of the halves was written before any result: data sets are sorted by kind (classes before numbers) and name,
and every second one, beginning with the first, is for choosing defaults; the others are held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from flatbayes.data import DataSplits, Split
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive, Predictive
from studies.defaults import tables
from studies.defaults.tables import Rows

MAX_TRAIN, MAX_VAL, MAX_TEST = 2000, 500, 1000
"""Largest splits, except for `large` tasks, which have 12,000 training rows."""
TEST_FRACTION, VAL_FRACTION = 0.25, 0.2


@dataclass(frozen=True)
class Task:
    """A data set.

    Attributes:
        name: Its name.
        kind: classes or numbers.
        load: Makes the rows of a seed.
        num_seeds: Number of splits; a synthetic data set is made anew for each.
        large: Keep all training rows, and fit only some posteriors and baselines.
        needs: Entry of the folder of shared data that it needs; empty for none.
    """

    name: str
    kind: str
    load: Callable[[int], Rows] = field(repr=False)
    num_seeds: int = 2
    large: bool = False
    needs: str = ""

    @property
    def half(self) -> str:
        """Whether the data set is for choosing defaults, or held out."""
        names = [task.name for task in sorted(TASKS, key=lambda task: (task.kind, task.name))]
        return "choice" if names.index(self.name) % 2 == 0 else "held-out"

    def split(self, seed: int) -> "TaskData":
        """Training, validation and test split of a seed."""
        return split_rows(self.load(seed), seed, self.kind == "classes", MAX_TRAIN if not self.large else 18_000)


@dataclass(frozen=True, eq=False)
class TaskData:
    """Splits of a task.

    Attributes:
        splits: The data as numbers; words are one-hot and missing values replaced by the median, with a column that
            says so, by the training rows.
        frames: Data frames of the training and test rows of a table with words or missing values.
        truth: The distribution that the test targets were drawn from, if it is known.
    """

    splits: DataSplits
    frames: tuple[pd.DataFrame, pd.DataFrame] | None
    truth: Predictive | None


def split_rows(rows: Rows, seed: int, is_classification: bool, max_train: int) -> TaskData:
    """Split rows at random, stratified by class, and cut the splits to their largest sizes."""
    indices = np.arange(len(rows.targets))

    def divide(members: Any, size: float) -> Sequence[Any]:
        strata = rows.targets[members] if is_classification else None
        return tuple(train_test_split(members, test_size=size, random_state=seed, stratify=strata))

    rest, test = divide(indices, TEST_FRACTION) if rows.test is None else (indices[~rows.test], indices[rows.test])
    train, val = divide(rest, VAL_FRACTION)
    members = {"train": train[:max_train], "val": val[:MAX_VAL], "test": test[:MAX_TEST]}
    frames = None
    inputs = rows.inputs
    if isinstance(inputs, pd.DataFrame):
        frames = inputs.iloc[members["train"]], inputs.iloc[members["test"]]
        inputs = make_encoder().fit(frames[0]).transform(inputs)
    targets = rows.targets.astype("int64") if is_classification else rows.targets.astype("float64")
    splits = {
        name: Split(inputs=torch.from_numpy(inputs[index]), targets=torch.from_numpy(targets[index]))
        for name, index in members.items()
    }
    data = DataSplits(
        **splits,
        class_names=tuple(str(k) for k in range(int(targets.max()) + 1)) if is_classification else (),
        target_names=() if is_classification else ("y",),
        feature_names=tuple(f"x{k}" for k in range(inputs.shape[1])) if inputs.ndim == 2 else (),
        augment=None,
    )
    truth = None if rows.truth is None else make_truth(torch.from_numpy(rows.truth[members["test"]]), data)
    return TaskData(data, frames, truth)


def make_truth(params: torch.Tensor, data: DataSplits) -> Predictive:
    """The distribution of test targets from its parameters, as in `Rows.truth`."""
    if data.is_regression:
        return GaussianPredictive(params[:, 0][None], params[:, 1][None])
    log_probs = params.log()
    return CategoricalPredictive(log_probs, -(params * log_probs).nan_to_num().sum(1), torch.zeros_like(params))


def make_encoder() -> Any:
    """Encoding of a table with words and missing values, as users of scikit-learn write it."""
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False))
    is_word = [(words, lambda frame: frame.select_dtypes(exclude="number").columns)]
    numbers = SimpleImputer(strategy="median", add_indicator=True)
    return make_column_transformer(*is_word, remainder=numbers)


CLASSES = (
    Task("breast-cancer", "classes", tables.load_bundled("breast_cancer")),
    Task("cifar10", "classes", tables.load_cifar10, num_seeds=1, needs="cifar10"),
    Task("digits", "classes", tables.load_bundled("digits"), num_seeds=1),
    Task("imbalanced", "classes", tables.make_imbalanced),
    Task("iris", "classes", tables.load_bundled("iris")),
    Task("large-classes", "classes", tables.make_large_classes, num_seeds=1, large=True),
    Task("noisy-labels", "classes", tables.make_noisy_labels),
    Task("sst2", "classes", tables.load_sst2, num_seeds=1),
    Task("table-classes", "classes", tables.make_table(12, classes=True)),
    Task("two-columns", "classes", tables.make_two_columns),
    Task("wide-classes", "classes", tables.make_wide_classes),
    Task("wine", "classes", tables.load_bundled("wine")),
)
NUMBERS = (
    Task("concrete", "numbers", tables.load_uci("concrete"), needs="uci"),
    Task("diabetes", "numbers", tables.load_bundled("diabetes")),
    Task("energy", "numbers", tables.load_uci("energy"), needs="uci"),
    Task("heteroscedastic", "numbers", tables.make_heteroscedastic),
    Task("high-noise", "numbers", tables.make_friedman(500, 10, 8.0, stream=2)),
    Task("kin8nm", "numbers", tables.load_uci("kin8nm"), num_seeds=1, needs="uci"),
    Task("large-numbers", "numbers", tables.make_friedman(20_000, 10, 1.0, stream=3), num_seeds=1, large=True),
    Task("low-noise", "numbers", tables.make_friedman(500, 5, 0.05, stream=4)),
    Task("power-plant", "numbers", tables.load_uci("power-plant"), num_seeds=1, needs="uci"),
    Task("small-numbers", "numbers", tables.make_small_numbers),
    Task("table-numbers", "numbers", tables.make_table(13, classes=False)),
    Task("wide-numbers", "numbers", tables.make_wide_numbers),
    Task("wine-quality-red", "numbers", tables.load_uci("wine-quality-red"), needs="uci"),
)
TASKS = CLASSES + NUMBERS


def select_tasks(names: Sequence[str] | None = None, half: str | None = None) -> list[Task]:
    """Tasks whose data are available, by name or half (choice, held-out); the smallest come first.

    Raises:
        ValueError: There is no such task.
    """
    unknown = sorted(set(names or ()) - {task.name for task in TASKS})
    if unknown:
        raise ValueError(f"There is no task {', '.join(unknown)}; there are {', '.join(t.name for t in TASKS)}.")
    wanted = [task for task in TASKS if (names is None or task.name in names) and half in (None, task.half)]
    return sorted((t for t in wanted if not t.needs or tables.is_available(t.needs)), key=lambda task: task.large)
