"""Selection of the hyperparameters in `configs/cifar10-small.yaml`, on validation data, first for plain training.

500 training images without augmentation and a small network, so that all methods can be compared within minutes on a
CPU. The procedure is that of `studies/hyperparameters/digits.py`.

    FLATBAYES_DATA=... python -m studies.hyperparameters.cifar10 runs/choose-cifar
"""

import sys
from functools import partial
from pathlib import Path

from flatbayes.data import CIFAR10
from flatbayes.experiments import Comparison
from flatbayes.models import ConvNet
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import Cosine, SWALinear, TrainingConfig
from studies.hyperparameters.digits import (
    make_sampling_method,
    make_sgd_method,
    make_variational_method,
    select_and_write,
)

RADII = (0.03, 0.08)
DECAYS = (1e-3, 1e-2)
SWA = SWALinear(end_factor=0.5)
CANDIDATES = {
    "MAP": [make_sgd_method(MAP(), 0.1, decay, Cosine()) for decay in DECAYS],
    "MC-Dropout": [make_sgd_method(MCDropout(rate=rate), 0.1, 1e-3, Cosine()) for rate in (0.05, 0.2)],
    "SWAG-Diag": [make_sgd_method(SWAG(rank=0, scale=1.0), 0.1, decay, SWA) for decay in DECAYS],
    "SWAG": [make_sgd_method(SWAG(), 0.1, decay, SWA) for decay in DECAYS],
    "Ensemble": [make_sgd_method(Ensemble(size=3), 0.1, decay, Cosine()) for decay in DECAYS],
    "SGVB": [make_variational_method(SGVB, 0.005, t, 10.0, epochs=40) for t in (0.003, 0.03)],
    "SGVB-LRT": [make_variational_method(LRT, 0.005, t, 10.0, epochs=40) for t in (0.003, 0.03)],
    "SGLD": [make_sampling_method(SGLD, 0.2, t, 10.0, epochs=40) for t in (0.01, 0.1)],
    "SGHMC": [make_sampling_method(SGHMC, 0.02, t, 10.0, epochs=40) for t in (0.01, 0.1)],
    "Laplace": [make_sgd_method(Laplace(temperature=t), 0.1, DECAYS[0], Cosine()) for t in (0.01, 0.1)],
}

COMMON = Comparison(
    source=CIFAR10(train_size=500, val_size=1000, flip=False, pad=0),
    model=partial(ConvNet, width=8),
    posteriors=(MAP(),),
    config=TrainingConfig(epochs=40, num_validations=0, batch_size=50),
    num_seeds=2,
    num_draws=10,
)

if __name__ == "__main__":
    select_and_write(COMMON, CANDIDATES, RADII, Path(sys.argv[1]), num_seeds=5)
