"""The Hessian that IVON finds with and without flatness on digits, and the predictions that follow from it.

    python -m studies.ivon_hessian docs/results/ivon-hessian.json

Each training uses the defaults of `fit` and 500 digits. With `beta2` 0.99999 the Hessian keeps its initial value of
0.5 in so few steps, and with 1 - 10 / steps it is an average of the last tenth of the training. Numbers are on
validation examples, from which a setting can be chosen, and on test examples.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.data import Digits
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import IVON
from flatbayes.prediction import evaluate
from flatbayes.training import TrainingConfig, fit

NUM_SEEDS, NUM_DRAWS, TRAIN_SIZE = 5, 30, 500
BETAS = (0.99999, 1 - 10 / 3000)
TEMPERATURES = (1.0, 0.1, 0.01)
FLATNESSES: dict[str, Flatness] = {"Plain": Plain(), "SAM": SAM(rho=0.1)}


def run(posterior: IVON, flatness: Flatness, seed: int) -> dict[str, float]:
    """Metrics of one training, and mean and median of its Hessian."""
    data = Digits(train_size=TRAIN_SIZE).load(seed=seed)
    config = TrainingConfig(num_validations=0)
    fitted = fit(partial(MLP, hidden=(50,)), data, posterior, flatness, config, seed=seed, show_progress=False)
    val, test = (evaluate(fitted, split.inputs, split.targets, NUM_DRAWS).metrics for split in (data.val, data.test))
    hessian = fitted.states[0].statistics["hessian"]
    return {
        "val_nll": val["nll"],
        "test_nll": test["nll"],
        "test_accuracy": test["accuracy"],
        "hessian_mean": float(hessian.mean()),
        "hessian_median": float(hessian.median()),
    }


def main(path: Path) -> None:
    """Write mean and standard deviation over seeds for every setting; those that the file has are kept."""
    torch.set_num_threads(1)
    rows = read_json(path) if path.exists() else []
    done = {(row["beta2"], row["temperature"], row["flatness"]) for row in rows}
    for beta2, temperature, flatness in product(BETAS, TEMPERATURES, FLATNESSES):
        if (beta2, temperature, flatness) in done:
            continue
        posterior = IVON(beta2=beta2, temperature=temperature)
        runs = [run(posterior, FLATNESSES[flatness], seed) for seed in range(NUM_SEEDS)]
        summary = {key: (fmean(row[key] for row in runs), stdev(row[key] for row in runs)) for key in runs[0]}
        rows.append({"beta2": beta2, "temperature": temperature, "flatness": flatness, **summary})
        print(rows[-1], flush=True)
        write_json(path, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
