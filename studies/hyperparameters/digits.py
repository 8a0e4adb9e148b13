"""How the hyperparameters of `configs/digits-all.yaml` were chosen: on validation data only, the plain twin first.

For every method the setting with the best validation NLL when trained plainly, then the radius with the best
validation NLL for it. The test part is never looked at. Trials and choices are in FOLDER/selection.json, and
FOLDER/config.yaml is what `flatbayes compare --config` takes.

    python -m studies.hyperparameters.digits runs/choose-digits
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import torch
import yaml

from flatbayes.core.spec import to_spec
from flatbayes.data import Digits
from flatbayes.experiments import Comparison, Method, select_methods
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import Constant, Cosine, SWALinear, TrainingConfig

RADII = (0.05, 0.1, 0.2, 0.4, 0.8)
MODEL = partial(MLP, hidden=(200, 200))


def sgd(lr, decay=0.0, momentum=0.9):
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=decay)


def adam(lr):
    return partial(torch.optim.Adam, lr=lr)


def grid(make, *axes):
    return [make(*values) for values in itertools.product(*axes)]


def trained(posterior, lr, decay, schedule):
    return Method(posterior, config_overrides={"optimizer": sgd(lr, decay), "schedule": schedule})


def variational(kind, lr, temperature, precision, epochs=120):
    posterior = kind(prior_precision=precision, temperature=temperature, initial_std=0.03)
    return Method(posterior, config_overrides={"optimizer": adam(lr), "schedule": Cosine(), "epochs": epochs})


def sampled(kind, lr, temperature, precision, epochs=120):
    optimizer, recipe = (
        sgd(lr, momentum=0.0),
        {"schedule": Constant(), "epochs": epochs, "collection.start_fraction": 0.5},
    )
    return Method(
        kind(prior_precision=precision, temperature=temperature), config_overrides={"optimizer": optimizer, **recipe}
    )


DECAYS = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2)
COLD = (0.003, 0.01, 0.03)
CANDIDATES = {
    "MAP": [trained(MAP(), 0.2, d, Cosine()) for d in DECAYS],
    "MC-Dropout": grid(lambda r, d: trained(MCDropout(rate=r), 0.1, d, Cosine()), (0.2, 0.4, 0.6), DECAYS[1:3]),
    "SWAG-Diag": [trained(SWAG(rank=0, scale=1.0), 0.1, d, SWALinear(end_factor=0.5)) for d in DECAYS],
    "SWAG": [trained(SWAG(), 0.1, d, SWALinear(end_factor=0.5)) for d in DECAYS],
    "Ensemble": [trained(Ensemble(), 0.2, d, Cosine()) for d in DECAYS[:3]],
    "SGVB": grid(partial(variational, SGVB), (0.005,), COLD, (1.0, 10.0)),
    "SGVB-LRT": grid(partial(variational, LRT), (0.005,), COLD, (1.0, 10.0)),
    "SGLD": grid(partial(sampled, SGLD), (0.1, 0.3), (0.003, 0.01, 0.1, 1.0), (10.0,)),
    "SGHMC": grid(partial(sampled, SGHMC), (0.01, 0.03), (0.003, 0.01, 0.1), (10.0,)),
    "Laplace": grid(lambda t, d: trained(Laplace(temperature=t), 0.2, d, Cosine()), (0.01, 0.03, 0.1), DECAYS[1:3]),
}

COMMON = Comparison(
    source=Digits(),
    model=MODEL,
    posteriors=(MAP(),),
    config=TrainingConfig(epochs=60, num_validations=0),
    num_seeds=5,
)


def choose(common, candidates, radii, folder, seeds):
    """Select, and write the comparison on test data as a configuration."""
    chosen = select_methods(common, candidates, [SAM(rho=rho) for rho in radii], Path(folder))
    config = {
        "data": to_spec(common.source),
        "model": to_spec(common.model),
        "posteriors": [to_spec(method)["init_args"] for method in chosen],
        "epochs": common.config.epochs,
        "batch_size": common.config.batch_size,
        "num_validations": 10,
        "num_seeds": seeds,
        "num_draws": common.num_draws,
    }
    Path(folder, "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    choose(COMMON, CANDIDATES, RADII, sys.argv[1], seeds=10)
