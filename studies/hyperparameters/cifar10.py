"""How the hyperparameters of `configs/cifar10-small.yaml` were chosen: on validation images, the plain twin first.

Five hundred training images, not augmented, and a small network, so that a comparison of all methods is a matter of
minutes on a CPU; as in choose_digits.py, which see.

    FLATBAYES_DATA=... python -m studies.hyperparameters.cifar10 runs/choose-cifar
"""

import sys
from functools import partial

from flatbayes.data import CIFAR10
from flatbayes.experiments import Comparison
from flatbayes.models import ConvNet
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import Cosine, SWALinear, TrainingConfig
from studies.hyperparameters.digits import choose, sampled, trained, variational

RADII = (0.03, 0.08)
DECAYS = (1e-3, 1e-2)
CANDIDATES = {
    "MAP": [trained(MAP(), 0.1, d, Cosine()) for d in DECAYS],
    "MC-Dropout": [trained(MCDropout(rate=r), 0.1, 1e-3, Cosine()) for r in (0.05, 0.2)],
    "SWAG-Diag": [trained(SWAG(rank=0, scale=1.0), 0.1, d, SWALinear(end_factor=0.5)) for d in DECAYS],
    "SWAG": [trained(SWAG(), 0.1, d, SWALinear(end_factor=0.5)) for d in DECAYS],
    "Ensemble": [trained(Ensemble(size=3), 0.1, d, Cosine()) for d in DECAYS],
    "SGVB": [variational(SGVB, 0.005, t, 10.0, epochs=40) for t in (0.003, 0.03)],
    "SGVB-LRT": [variational(LRT, 0.005, t, 10.0, epochs=40) for t in (0.003, 0.03)],
    "SGLD": [sampled(SGLD, 0.2, t, 10.0, epochs=40) for t in (0.01, 0.1)],
    "SGHMC": [sampled(SGHMC, 0.02, t, 10.0, epochs=40) for t in (0.01, 0.1)],
    "Laplace": [trained(Laplace(temperature=t), 0.1, DECAYS[0], Cosine()) for t in (0.01, 0.1)],
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
    choose(COMMON, CANDIDATES, RADII, sys.argv[1], seeds=5)
