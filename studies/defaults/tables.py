"""Data sets with known truth, and rows of real data sets, as arrays that are not split yet.

A generator of a synthetic data set returns the parameters of the distribution that every target was drawn from, so
that the best possible NLL is known: the mean and standard deviation of numbers, or the probabilities of classes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
Generator = np.random.Generator


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples that are not split yet.

    Attributes:
        inputs: [n, features] or [n, channels, height, width]; or a data frame with words and missing values.
        targets: [n], numbers or class indices.
        truth: [n, 2] means and standard deviations, or [n, classes] probabilities; None if they are not known.
        test: Which examples are the test split; None draws them.
    """

    inputs: Array | NDArray[np.uint8] | pd.DataFrame
    targets: NDArray[np.generic]
    truth: Array | None = None
    test: NDArray[np.bool_] | None = None


def load_bundled(name: str) -> Callable[[int], Rows]:
    """A function that loads a data set of scikit-learn, by `sklearn.datasets.load_<name>`."""

    def load(seed: int) -> Rows:
        from sklearn import datasets

        inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
        return Rows(np.asarray(inputs, float), np.asarray(targets))

    return load


def load_uci(name: str) -> Callable[[int], Rows]:
    """A function that loads a UCI regression with the standard split of a seed."""

    def load(seed: int) -> Rows:
        from flatbayes.data import UCI

        raw = UCI(name=name).read()
        inputs, targets = np.asarray(raw.unsplit.inputs), np.asarray(raw.unsplit.targets)
        is_test = np.zeros(len(targets), bool)
        is_test[np.asarray(raw.standard_splits[seed].test)] = True
        return Rows(inputs, targets, test=is_test)

    return load


def load_cifar10(seed: int) -> Rows:
    """800 training and validation images of CIFAR-10 and 600 test images, JPEG re-encodings of the original."""
    from flatbayes.data import CIFAR10

    data = CIFAR10(train_size=800, val_size=0.01).load(seed)
    test = data.test.subsample(600, seed)
    images = [np.asarray(split.input_tensor) for split in (data.train, test)]
    labels = [np.asarray(split.targets) for split in (data.train, test)]
    is_test = np.repeat([False, True], [len(part) for part in labels])
    return Rows(np.concatenate(images), np.concatenate(labels), test=is_test)


def load_sst2(seed: int) -> Rows:
    """Sentence features of SST-2: outputs of MiniLM-L6, rounded to 8 bits, for 1000 train and 600 dev sentences."""
    with np.load(Path(__file__).with_name("sst2.npz")) as arrays:
        features = arrays["features"].astype(float) * arrays["scale"]
        return Rows(features, arrays["labels"].astype(int), test=arrays["is_test"])


def make_numbers(mean: Array, std: Array | float, inputs: Array, rng: Generator) -> Rows:
    """A regression with normal noise."""
    std = np.broadcast_to(np.asarray(std, float), mean.shape)
    return Rows(inputs, rng.normal(mean, std), np.stack([mean, std], 1))


def make_classes(logits: Array, inputs: Array, rng: Generator, flip: float = 0.0) -> Rows:
    """A classification whose labels are drawn from softmax probabilities, mixed with the uniform distribution.

    Args:
        logits: [n, classes].
        inputs: [n, features].
        rng: Random numbers of the labels.
        flip: Fraction of the labels that are drawn uniformly.
    """
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs = (1 - flip) * probs / probs.sum(1, keepdims=True) + flip / logits.shape[1]
    labels = (probs.cumsum(1) > rng.random((len(probs), 1))).argmax(1)
    return Rows(inputs, labels, probs)


def make_heteroscedastic(seed: int) -> Rows:
    """600 rows, 3 columns: the standard deviation grows from .05 to 1 along one column."""
    rng = np.random.default_rng([1, seed])
    x = rng.uniform(-2, 2, (600, 3))
    return make_numbers(np.sin(2 * x[:, 0]) + 0.5 * x[:, 1], 0.05 + 0.95 * (x[:, 2] + 2) / 4, x, rng)


def make_friedman(num_rows: int, num_columns: int, noise: float, stream: int) -> Callable[[int], Rows]:
    """A function that makes Friedman's (1991) first regression, standard deviation 5, with more columns of noise."""

    def make(seed: int) -> Rows:
        rng = np.random.default_rng([stream, seed])
        x = rng.uniform(0, 1, (num_rows, num_columns))
        mean = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return make_numbers(mean, noise, x, rng)

    return make


def make_small_numbers(seed: int) -> Rows:
    """200 rows, 2 columns."""
    rng = np.random.default_rng([5, seed])
    x = rng.normal(size=(200, 2))
    return make_numbers(np.tanh(x[:, 0]) + 0.5 * x[:, 0] * x[:, 1], 0.2, x, rng)


def make_wide_numbers(seed: int) -> Rows:
    """400 rows, 200 columns, ten of which matter, linearly."""
    rng = np.random.default_rng([6, seed])
    x = rng.normal(size=(400, 200))
    return make_numbers(x[:, :10] @ np.linspace(0.2, 1, 10), 0.7, x, rng)


def make_two_columns(seed: int) -> Rows:
    """200 rows, 2 columns, three overlapping classes with curved borders."""
    rng = np.random.default_rng([7, seed])
    x = rng.normal(size=(200, 2))
    logits = np.stack([2 * x[:, 0], 2 * x[:, 1] ** 2 - 1.5, -2 * x[:, 0] - x[:, 1]], 1)
    return make_classes(logits, x, rng)


def make_imbalanced(seed: int) -> Rows:
    """2000 rows, 10 columns, 4 % in the second class."""
    rng = np.random.default_rng([8, seed])
    x = rng.normal(size=(2000, 10))
    score = 2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3] - 5.3
    return make_classes(np.stack([0 * score, score], 1), x, rng)


def make_noisy_labels(seed: int) -> Rows:
    """1500 rows, 20 columns, four classes; 30 % of the labels are random."""
    rng = np.random.default_rng([9, seed])
    x = rng.normal(size=(1500, 20))
    weights = np.random.default_rng(9).normal(size=(20, 4))
    return make_classes(np.tanh(x[:, :]) @ weights * 1.5, x, rng, flip=0.3)


def make_large_classes(seed: int) -> Rows:
    """20,000 rows, 20 columns, five classes by a random network."""
    rng, fixed = np.random.default_rng([10, seed]), np.random.default_rng(10)
    x = rng.normal(size=(20_000, 20))
    hidden = np.tanh(x @ fixed.normal(size=(20, 8)) / 2)
    return make_classes(hidden @ fixed.normal(size=(8, 5)) * 2, x, rng)


def make_wide_classes(seed: int) -> Rows:
    """400 rows, 200 columns, five of which matter."""
    rng = np.random.default_rng([11, seed])
    x = rng.normal(size=(400, 200))
    score = x[:, :5] @ np.array([1.5, -1.0, 1.0, -0.5, 0.5])
    return make_classes(np.stack([0 * score, score], 1), x, rng)


def make_table(stream: int, *, classes: bool) -> Callable[[int], Rows]:
    """A function that makes 1200 rows of three numbers, two of them with missing values, and two columns of words."""

    def make(seed: int) -> Rows:
        rng = np.random.default_rng([stream, seed])
        n = 1200
        age, income, size = rng.uniform(18, 80, n), rng.lognormal(10, 0.6, n), rng.normal(size=n)
        city, plan = rng.integers(0, 6, n), rng.integers(0, 3, n)
        city_effect, plan_effect = np.array([-1, -0.5, 0, 0.3, 0.6, 1.2]), np.array([-0.8, 0, 1.0])
        score = city_effect[city] + plan_effect[plan] * (age - 50) / 20 + np.log(income / 22_000) + 0.3 * size
        frame = pd.DataFrame(
            {
                "age": np.where(rng.random(n) < 0.1, np.nan, age),
                "income": np.where(rng.random(n) < 0.2, np.nan, income),
                "size": size,
                "city": np.array(["Aachen", "Bonn", "Celle", "Dresden", "Essen", "Fulda"])[city],
                "plan": np.array(["free", "home", "office"])[plan],
            }
        )
        # The truth is not known: it would need the expectation over the values that are missing.
        if classes:
            rows = make_classes(np.stack([0 * score, 2 * score, 1 - score], 1), score[:, None], rng)
        else:
            rows = make_numbers(50 + 10 * score, 4.0, score[:, None], rng)
        return Rows(frame, rows.targets)

    return make


def is_available(name: str) -> bool:
    """Whether the folder of shared data holds the data of this name."""
    return (Path(os.environ.get("FLATBAYES_DATA", "/nonexistent")) / name).exists()
