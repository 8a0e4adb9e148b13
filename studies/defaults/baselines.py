"""Models of scikit-learn with default options, and one network that is tuned on validation data.

All are trained on standardised training rows. The noise of a regression that has none of its own is normal with the
root mean square of the residuals on validation rows; classes are mixed with a uniform distribution, whose weight has
the lowest NLL on validation rows, so that no label has the probability 0.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from flatbayes.data import DataSplits, Split
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive, Predictive

Array = NDArray[np.float64]
LINEAR, FOREST, BOOSTING, PROCESS, NETWORK = (
    "linear",
    "random forest",
    "boosting",
    "Gaussian process",
    "tuned network",
)
NAMES = (LINEAR, FOREST, BOOSTING, PROCESS, NETWORK)
MAX_PROCESS_ROWS = {True: 1000, False: 300}
"""Largest number of training rows of a Gaussian process, by whether it is a regression; the rest is left out."""
UNIFORM_WEIGHTS = (1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1)
WEIGHT_PENALTIES, MAX_EPOCHS, PATIENCE = (1e-4, 1e-2, 1.0), 200, 20
"""Candidates of the tuned network, its longest training, and epochs without a better validation loss that end it."""
HIDDEN = (128, 128)


@dataclass(frozen=True, eq=False)
class Standardized:
    """Standardised arrays of a task.

    Attributes:
        inputs: Inputs of the training, validation and test rows.
        targets: Their targets; numbers standardised by the training rows.
        mean: Mean of the training targets of a regression.
        std: Their standard deviation.
        is_regression: Whether the targets are numbers.
        num_classes: Number of classes.
        seed: Seed of the models.
    """

    inputs: tuple[Array, Array, Array]
    targets: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    mean: float
    std: float
    is_regression: bool
    num_classes: int
    seed: int


def standardize(data: DataSplits, seed: int) -> Standardized:
    """Standardise inputs, and numbers as targets, by the training rows."""

    def flatten(split: Split) -> Array:
        return np.asarray(split.input_tensor, float).reshape(len(split), -1)

    scaler = StandardScaler().fit(flatten(data.train))
    splits = (data.train, data.val, data.test)
    inputs = tuple(scaler.transform(flatten(split)) for split in splits)
    targets = tuple(np.asarray(split.targets) for split in splits)
    mean, std = (float(targets[0].mean()), float(targets[0].std())) if data.is_regression else (0.0, 1.0)
    if data.is_regression:
        targets = tuple((y - mean) / std for y in targets)
    num_classes = 0 if data.is_regression else data.num_classes
    return Standardized(inputs, targets, mean, std, data.is_regression, num_classes, seed)  # type: ignore[arg-type]


def fit_baseline(name: str, data: DataSplits, seed: int) -> Predictive:
    """Fit a baseline, and predict the test rows."""
    arrays = standardize(data, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if name == NETWORK:
            return predict_rows(tune_network(arrays), arrays)
        model, rows = make_model(name, arrays), slice(None)
        if name == PROCESS:
            rows = slice(MAX_PROCESS_ROWS[arrays.is_regression])
        model.fit(arrays.inputs[0][rows], arrays.targets[0][rows])
        if name == PROCESS and arrays.is_regression:
            mean, std = model.predict(arrays.inputs[2], return_std=True)
            return make_normal(mean, std, arrays)
        return predict_rows(model, arrays)


def make_model(name: str, arrays: Standardized) -> Any:
    """A model with default options; the kernel of a Gaussian process starts at a length of sqrt(columns)."""
    kernel = ConstantKernel() * RBF(np.sqrt(arrays.inputs[0].shape[1]), (1e-2, 1e4))
    seed = arrays.seed
    makers: dict[tuple[str, bool], Callable[[], Any]] = {
        (LINEAR, False): lambda: LogisticRegression(max_iter=1000),
        (LINEAR, True): lambda: Ridge(),
        (FOREST, False): lambda: RandomForestClassifier(random_state=seed),
        (FOREST, True): lambda: RandomForestRegressor(random_state=seed),
        (BOOSTING, False): lambda: HistGradientBoostingClassifier(random_state=seed),
        (BOOSTING, True): lambda: HistGradientBoostingRegressor(random_state=seed),
        (PROCESS, False): lambda: GaussianProcessClassifier(kernel, random_state=seed),
        (PROCESS, True): lambda: GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-6, 10.0)), random_state=seed),
    }
    return makers[name, arrays.is_regression]()


def tune_network(arrays: Standardized) -> Any:
    """A network with the penalty of the weights and the number of epochs that have the lowest validation loss."""
    best, best_loss = None, np.inf
    for penalty in WEIGHT_PENALTIES:
        options = {"hidden_layer_sizes": HIDDEN, "alpha": penalty, "random_state": arrays.seed}
        options["batch_size"] = min(64, len(arrays.inputs[0]))
        network = MLPRegressor(**options) if arrays.is_regression else MLPClassifier(**options)
        keywords = {} if arrays.is_regression else {"classes": np.arange(arrays.num_classes)}
        lowest, since = np.inf, 0
        for _ in range(MAX_EPOCHS):
            network.partial_fit(arrays.inputs[0], arrays.targets[0], **keywords)
            loss, since = compute_loss(network, arrays), since + 1
            if loss < lowest:
                lowest, since = loss, 0
            if loss < best_loss:
                best, best_loss = copy.deepcopy(network), loss
            if since == PATIENCE:
                break
    return best


def compute_loss(model: Any, arrays: Standardized) -> float:
    """Squared error or NLL on the validation rows."""
    inputs, targets = arrays.inputs[1], arrays.targets[1]
    if arrays.is_regression:
        return float(np.mean((model.predict(inputs) - targets) ** 2))
    return compute_nll(model.predict_proba(inputs), targets, UNIFORM_WEIGHTS[0])


def compute_nll(probs: Array, labels: NDArray[Any], weight: float) -> float:
    """NLL of probabilities that are mixed with the uniform distribution."""
    mixed = (1 - weight) * probs[np.arange(len(labels)), labels] + weight / probs.shape[1]
    return -float(np.log(mixed).mean())


def predict_rows(model: Any, arrays: Standardized) -> Predictive:
    """Predictive distribution of the test rows, with the noise or the uniform weight of the validation rows."""
    if arrays.is_regression:
        std = np.sqrt(np.mean((model.predict(arrays.inputs[1]) - arrays.targets[1]) ** 2))
        mean = model.predict(arrays.inputs[2])
        return make_normal(mean, np.full_like(mean, std), arrays)
    val_probs, probs = (expand_classes(model, arrays.inputs[k], arrays.num_classes) for k in (1, 2))
    weight = min(UNIFORM_WEIGHTS, key=lambda weight: compute_nll(val_probs, arrays.targets[1], weight))
    mixed = torch.from_numpy((1 - weight) * probs + weight / arrays.num_classes)
    mixed = mixed / mixed.sum(1, keepdim=True)
    entropy = -(mixed * mixed.log()).sum(1)
    return CategoricalPredictive(mixed.log(), entropy, torch.zeros_like(mixed))


def expand_classes(model: Any, inputs: Array, num_classes: int) -> Array:
    """Probabilities of all classes, 0 for those without a training row."""
    probs = np.zeros((len(inputs), num_classes))
    probs[:, model.classes_] = model.predict_proba(inputs)
    return probs


def make_normal(mean: Array, std: Array, arrays: Standardized) -> GaussianPredictive:
    """Normal distributions in the unit of the targets."""
    return GaussianPredictive(
        torch.from_numpy(mean * arrays.std + arrays.mean)[None], torch.from_numpy(std * arrays.std)[None]
    )
