"""Estimators with default parameters against networks and linear models of scikit-learn, by cross-validation.

The default prior precision was selected on these data, so their results are not independent of it.

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
from flatbayes.core.files import write_json
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.experiments.run_folder import describe_environment

NUM_SEEDS, NUM_FOLDS = 3, 5
HIDDEN = (64, 64)
TABLES = {"breast cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "FlatBayesClassifier": lambda seed: FlatBayesClassifier(epochs=60, random_state=seed),
    "plain training": lambda seed: FlatBayesClassifier(flatness=Plain(), epochs=60, random_state=seed),
    "MLPClassifier": lambda seed: standardize(MLPClassifier(HIDDEN, max_iter=300, random_state=seed)),
    "LogisticRegression": lambda seed: standardize(LogisticRegression(max_iter=1000)),
}
REGRESSORS: dict[str, Callable[[int], Any]] = {
    "FlatBayesRegressor": lambda seed: FlatBayesRegressor(epochs=60, random_state=seed),
    "plain training": lambda seed: FlatBayesRegressor(flatness=Plain(), epochs=60, random_state=seed),
    "MLPRegressor": lambda seed: TransformedTargetRegressor(
        standardize(MLPRegressor(hidden_layer_sizes=HIDDEN, max_iter=300, random_state=seed)),
        transformer=StandardScaler(),
    ),
    "BayesianRidge": lambda seed: standardize(BayesianRidge()),
}


def standardize(estimator: Any) -> Any:
    """The estimator behind a standardisation of the inputs."""
    return make_pipeline(StandardScaler(), estimator)


def cross_validate_classifier(make: Callable[[int], Any], load: Callable[..., Any], seed: int) -> dict[str, float]:
    """NLL, accuracy and seconds per fold, averaged over the folds of one seed."""
    X, y = load(return_X_y=True)
    nll, accuracy, start = [], [], time.perf_counter()
    for train, test in StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed).split(X, y):
        probs = make(seed).fit(X[train], y[train]).predict_proba(X[test])
        nll.append(log_loss(y[test], probs))
        accuracy.append(float((probs.argmax(1) == y[test]).mean()))
    return {"nll": fmean(nll), "accuracy": fmean(accuracy), "seconds": (time.perf_counter() - start) / NUM_FOLDS}


def cross_validate_regressor(make: Callable[[int], Any], load: Callable[..., Any], seed: int) -> dict[str, float]:
    """NLL, RMSE and seconds per fold; a network without a variance gets that of its training errors."""
    X, y = load(return_X_y=True, scaled=False)
    nll, rmse, start = [], [], time.perf_counter()
    for train, test in KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(X):
        model = make(seed).fit(X[train], y[train])
        if isinstance(model, FlatBayesRegressor):
            predictive = model.predict_distribution(X[test])
            mean, log_density = predictive.mean.numpy(), predictive.log_prob(torch.from_numpy(y[test])).numpy()
        else:
            if isinstance(model, TransformedTargetRegressor):
                mean, std = model.predict(X[test]), np.sqrt(np.mean((model.predict(X[train]) - y[train]) ** 2))
            else:
                mean, std = model.predict(X[test], return_std=True)
            log_density = -0.5 * ((y[test] - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        nll.append(-float(np.mean(log_density)))
        rmse.append(float(np.sqrt(np.mean((mean - y[test]) ** 2))))
    return {"nll": fmean(nll), "rmse": fmean(rmse), "seconds": (time.perf_counter() - start) / NUM_FOLDS}


def main(path: Path) -> None:
    """Write means and standard deviations over seeds."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    cases = [
        (table, load, name, cross_validate_classifier, make)
        for table, load in TABLES.items()
        for name, make in CLASSIFIERS.items()
    ]
    cases += [("diabetes", load_diabetes, name, cross_validate_regressor, make) for name, make in REGRESSORS.items()]
    rows = []
    for table, load, name, measure, make in cases:
        runs = [measure(make, load, seed) for seed in range(NUM_SEEDS)]
        means = {key: [fmean(run[key] for run in runs), stdev(run[key] for run in runs)] for key in runs[0]}
        rows.append({"data": table, "estimator": name, **means})
        print(rows[-1], flush=True)
    write_json(path, {"environment": describe_environment(), "seeds": NUM_SEEDS, "folds": NUM_FOLDS, "rows": rows})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
