"""How the demo's hyperparameters were chosen: on validation data only, the plain twin first.

The recipe (learning rate, weight decay, schedule) is the one with the best validation NLL of *plain* SWAG. Then,
with the recipe fixed, rho is the one with the best validation NLL of flat SWAG; scales and dropout rate are those of
the plain twins. The test part is never looked at.

    python -m studies.hyperparameters.demo            # about 15 minutes on two cores
"""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial

import torch
from joblib import Parallel, delayed

from flatbayes.data import Digits
from flatbayes.flatness import SAM, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG, MCDropout
from flatbayes.prediction import evaluate
from flatbayes.training import SWALinear, TrainingConfig, fit

SEEDS = range(5)
RATES = (0.1, 0.2, 0.4, 0.8)
DECAYS = (1e-4, 5e-4, 2e-3)
LOWS = (0.1, 0.5)
RHOS = (0.05, 0.1, 0.2, 0.3, 0.4)
SCALES = (0.0, 0.5, 1.0, 2.0)
DRAWS = 10
DROPOUTS = (0.05, 0.1, 0.2, 0.3)
MODEL = partial(ConvNet, width=16)


def recipe(lr, decay, low):
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=decay)
    return TrainingConfig(epochs=60, optimizer=optimizer, schedule=SWALinear(end_factor=low), num_validations=0)


def swag(cell, flatness, seed):
    """Validation NLL of SWAG and SWAG-Diag at every scale, from one training."""
    torch.set_num_threads(1)
    data = Digits().load(seed)
    try:
        fitted = fit(MODEL, data, SWAG(rank=20), flatness, recipe(*cell), seed=seed, show_progress=False)
    except RuntimeError:
        return {}
    found = {}
    for rank, scale in itertools.product((0, 20), SCALES):
        drawn = replace(fitted, posterior=SWAG(rank=rank, scale=scale))
        found[f"rank {rank} scale {scale}"] = evaluate(drawn, data.val.inputs, data.val.targets, DRAWS).metrics["nll"]
    return found


def dropout(cell, rate, flatness, seed):
    torch.set_num_threads(1)
    data = Digits().load(seed)
    fitted = fit(MODEL, data, MCDropout(rate=rate), flatness, recipe(*cell), seed=seed, show_progress=False)
    return evaluate(fitted, data.val.inputs, data.val.targets).metrics["nll"]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def main(jobs=2):
    parallel = Parallel(n_jobs=jobs)
    cells = list(itertools.product(RATES, DECAYS, LOWS))
    plain = parallel(delayed(swag)(cell, Plain(), seed) for cell in cells for seed in SEEDS)
    by_cell = {cell: plain[k * len(SEEDS) : (k + 1) * len(SEEDS)] for k, cell in enumerate(cells)}
    table = {
        cell: {key: mean(f[key] for f in found) for key in found[0]} for cell, found in by_cell.items() if all(found)
    }
    for cell, row in table.items():
        print("plain lr, decay, low", cell, json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
    best = min(table, key=lambda cell: min(table[cell].values()))
    print("recipe:", best, flush=True)

    flat = parallel(delayed(swag)(best, SAM(rho=rho), seed) for rho in RHOS for seed in SEEDS)
    for k, rho in enumerate(RHOS):
        found = flat[k * len(SEEDS) : (k + 1) * len(SEEDS)]
        if all(found):
            row = {key: round(mean(f[key] for f in found), 4) for key in found[0]}
            print("SAM rho", rho, json.dumps(row), flush=True)

    cells = list(itertools.product(DROPOUTS, (Plain(), *(SAM(rho=rho) for rho in RHOS))))
    found = parallel(delayed(dropout)(best, rate, flatness, seed) for rate, flatness in cells for seed in SEEDS)
    for k, (rate, flatness) in enumerate(cells):
        print(
            "MCDropout",
            rate,
            flatness,
            round(mean(found[k * len(SEEDS) : (k + 1) * len(SEEDS)]), 4),
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
