"""The estimators with their defaults against scikit-learn's own networks and linear models, by cross-validation.

The strength of the default prior was chosen on these data, which their figures must be read with.

    python -m studies.estimators docs/results/estimators.json
"""

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flatbayes import Plain
from flatbayes.core.environment import describe_environment
from flatbayes.core.files import write_json
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor

SEEDS, FOLDS = 3, 5
HIDDEN = (64, 64)
TABLES = {"breast cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "FlatBayesClassifier": lambda seed: FlatBayesClassifier(random_state=seed),
    "its plain twin": lambda seed: FlatBayesClassifier(flatness=Plain(), random_state=seed),
    "MLPClassifier": lambda seed: scaled(MLPClassifier(HIDDEN, max_iter=300, random_state=seed)),
    "LogisticRegression": lambda seed: scaled(LogisticRegression(max_iter=1000)),
}
REGRESSORS: dict[str, Callable[[int], Any]] = {
    "FlatBayesRegressor": lambda seed: FlatBayesRegressor(random_state=seed),
    "its plain twin": lambda seed: FlatBayesRegressor(flatness=Plain(), random_state=seed),
    "MLPRegressor": lambda seed: TransformedTargetRegressor(
        scaled(MLPRegressor(hidden_layer_sizes=HIDDEN, max_iter=300, random_state=seed)), transformer=StandardScaler()
    ),
    "BayesianRidge": lambda seed: scaled(BayesianRidge()),
}


def scaled(estimator: Any) -> Any:
    """After a standardisation of the inputs."""
    return make_pipeline(StandardScaler(), estimator)


def of_classes(make: Callable[[int], Any], load: Callable[..., Any], seed: int) -> dict[str, float]:
    """Means over the folds of one seed."""
    X, y = load(return_X_y=True)
    nll, accuracy, start = [], [], time.perf_counter()
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y):
        probs = make(seed).fit(X[train], y[train]).predict_proba(X[test])
        nll.append(log_loss(y[test], probs))
        accuracy.append(float((probs.argmax(1) == y[test]).mean()))
    return {"nll": fmean(nll), "accuracy": fmean(accuracy), "seconds": (time.perf_counter() - start) / FOLDS}


def of_numbers(make: Callable[[int], Any], load: Callable[..., Any], seed: int) -> dict[str, float]:
    """The same; a network without a variance has that of its errors in training."""
    X, y = load(return_X_y=True, scaled=False)
    nll, rmse, start = [], [], time.perf_counter()
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(X):
        model = make(seed).fit(X[train], y[train])
        if isinstance(model, FlatBayesRegressor):
            found = model.predict_distribution(X[test])
            mean, log_density = found.mean.numpy(), found.log_prob(torch.from_numpy(y[test])).numpy()
        else:
            if isinstance(model, TransformedTargetRegressor):
                mean, std = model.predict(X[test]), np.sqrt(np.mean((model.predict(X[train]) - y[train]) ** 2))
            else:
                mean, std = model.predict(X[test], return_std=True)
            log_density = -0.5 * ((y[test] - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        nll.append(-float(np.mean(log_density)))
        rmse.append(float(np.sqrt(np.mean((mean - y[test]) ** 2))))
    return {"nll": fmean(nll), "rmse": fmean(rmse), "seconds": (time.perf_counter() - start) / FOLDS}


def main(path: Path) -> None:
    """Means and standard deviations over seeds."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    cells = [
        (table, load, name, of_classes, make) for table, load in TABLES.items() for name, make in CLASSIFIERS.items()
    ]
    cells += [("diabetes", load_diabetes, name, of_numbers, make) for name, make in REGRESSORS.items()]
    rows = []
    for table, load, name, measure, make in cells:
        found = [measure(make, load, seed) for seed in range(SEEDS)]
        means = {key: [fmean(one[key] for one in found), stdev(one[key] for one in found)] for key in found[0]}
        rows.append({"data": table, "estimator": name, **means})
        print(rows[-1], flush=True)
    write_json(path, {"environment": describe_environment(), "seeds": SEEDS, "folds": FOLDS, "rows": rows})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
