"""Selection of the hyperparameters in `configs/digits-conv.yaml`, on validation data, first for plain training.

Learning rate, weight decay and schedule are those with the lowest validation NLL of plain SWAG. With them, rho is the
radius with the lowest validation NLL of flat SWAG; scales and dropout rate are those of plain training. The test
split is not used.

    python -m studies.hyperparameters.digits_conv     # about 15 minutes on two cores
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch
from joblib import Parallel, delayed

from flatbayes.data import Digits
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG, MCDropout
from flatbayes.prediction import evaluate
from flatbayes.training import SWALinear, TrainingConfig, fit

SEEDS = range(5)
LEARNING_RATES = (0.1, 0.2, 0.4, 0.8)
DECAYS = (1e-4, 5e-4, 2e-3)
END_FACTORS = (0.1, 0.5)
RADII = (0.05, 0.1, 0.2, 0.3, 0.4)
SCALES = (0.0, 0.5, 1.0, 2.0)
NUM_DRAWS = 10
DROPOUT_RATES = (0.05, 0.1, 0.2, 0.3)
MODEL = partial(ConvNet, width=16)
Setting = tuple[float, float, float]
"""Learning rate, weight decay, and end factor of the schedule."""


def make_config(setting: Setting) -> TrainingConfig:
    """The training configuration of a setting."""
    lr, decay, end_factor = setting
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=decay)
    return TrainingConfig(
        epochs=60, optimizer=optimizer, schedule=SWALinear(end_factor=end_factor), num_validations=0
    )


def evaluate_swag(setting: Setting, flatness: Flatness, seed: int) -> dict[str, float]:
    """Validation NLL of SWAG and SWAG-Diag at every scale, from one training; empty if it diverged."""
    torch.set_num_threads(1)
    data = Digits().load(seed)
    try:
        fitted = fit(MODEL, data, SWAG(rank=20), flatness, make_config(setting), seed=seed, show_progress=False)
    except RuntimeError:
        return {}
    nll = {}
    for rank, scale in itertools.product((0, 20), SCALES):
        rescaled = replace(fitted, posterior=SWAG(rank=rank, scale=scale))
        metrics = evaluate(rescaled, data.val.inputs, data.val.targets, NUM_DRAWS).metrics
        nll[f"rank {rank} scale {scale}"] = metrics["nll"]
    return nll


def evaluate_dropout(setting: Setting, rate: float, flatness: Flatness, seed: int) -> float:
    """Validation NLL of MC dropout."""
    torch.set_num_threads(1)
    data = Digits().load(seed)
    config = make_config(setting)
    fitted = fit(MODEL, data, MCDropout(rate=rate), flatness, config, seed=seed, show_progress=False)
    return evaluate(fitted, data.val.inputs, data.val.targets).metrics["nll"]


def average_over_seeds(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means by posterior; empty if a training diverged."""
    return {key: fmean(trial[key] for trial in trials) for key in trials[0]} if all(trials) else {}


def main(num_jobs: int = 2) -> None:
    """Print the validation NLL of all trials."""
    parallel, num_seeds = Parallel(n_jobs=num_jobs), len(SEEDS)
    settings = list(itertools.product(LEARNING_RATES, DECAYS, END_FACTORS))
    trials = parallel(delayed(evaluate_swag)(setting, Plain(), seed) for setting in settings for seed in SEEDS)
    table = {}
    for k, setting in enumerate(settings):
        if means := average_over_seeds(trials[k * num_seeds : (k + 1) * num_seeds]):
            table[setting] = means
            rounded = {key: round(nll, 4) for key, nll in means.items()}
            print("plain; lr, decay, end factor", setting, json.dumps(rounded), flush=True)
    best = min(table, key=lambda setting: min(table[setting].values()))
    print("best setting:", best, flush=True)

    trials = parallel(delayed(evaluate_swag)(best, SAM(rho=rho), seed) for rho in RADII for seed in SEEDS)
    for k, rho in enumerate(RADII):
        if means := average_over_seeds(trials[k * num_seeds : (k + 1) * num_seeds]):
            print("SAM rho", rho, json.dumps({key: round(nll, 4) for key, nll in means.items()}), flush=True)

    pairs = list(itertools.product(DROPOUT_RATES, (Plain(), *(SAM(rho=rho) for rho in RADII))))
    nll = parallel(
        delayed(evaluate_dropout)(best, rate, flatness, seed) for rate, flatness in pairs for seed in SEEDS
    )
    for k, (rate, flatness) in enumerate(pairs):
        print("MCDropout", rate, flatness, round(fmean(nll[k * num_seeds : (k + 1) * num_seeds]), 4), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
