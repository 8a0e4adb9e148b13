"""Selection of the hyperparameters in `configs/digits-all.yaml`, on validation data, first for plain training.

For every method: the setting with the lowest validation NLL in plain training, then with this setting the radius with
the lowest validation NLL. The test split is not used. FOLDER/selection.json has all trials, and FOLDER/config.yaml is
a configuration for `flatbayes compare --config`.

    python -m studies.hyperparameters.digits runs/choose-digits
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from flatbayes.core.spec import to_spec
from flatbayes.data import Digits
from flatbayes.experiments import Comparison, Method, select_methods
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import Constant, Cosine, Schedule, SWALinear, TrainingConfig

RADII = (0.05, 0.1, 0.2, 0.4, 0.8)
MODEL = partial(MLP, hidden=(200, 200))


def make_sgd(lr: float, weight_decay: float = 0.0, momentum: float = 0.9) -> Callable[..., torch.optim.Optimizer]:
    """SGD with everything but its parameters."""
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)


def make_grid(make_method: Callable[..., Method], *axes: Iterable[Any]) -> list[Method]:
    """A method for every combination of values."""
    return [make_method(*values) for values in itertools.product(*axes)]


def make_sgd_method(posterior: Posterior, lr: float, weight_decay: float, schedule: Schedule) -> Method:
    """A posterior trained by SGD with momentum."""
    return Method(posterior, config_overrides={"optimizer": make_sgd(lr, weight_decay), "schedule": schedule})


def make_variational_method(
    kind: type[SGVB] | type[LRT], lr: float, temperature: float, prior_precision: float, epochs: int = 120
) -> Method:
    """A variational posterior trained by Adam."""
    posterior = kind(prior_precision=prior_precision, temperature=temperature, initial_std=0.03)
    optimizer = partial(torch.optim.Adam, lr=lr)
    return Method(posterior, config_overrides={"optimizer": optimizer, "schedule": Cosine(), "epochs": epochs})


def make_sampling_method(
    kind: type[SGLD] | type[SGHMC], lr: float, temperature: float, prior_precision: float, epochs: int = 120
) -> Method:
    """A sampler with a constant step size, whose snapshots are from the second half of training."""
    overrides = {
        "optimizer": make_sgd(lr, momentum=0.0),
        "schedule": Constant(),
        "epochs": epochs,
        "collection.start_fraction": 0.5,
    }
    return Method(kind(prior_precision=prior_precision, temperature=temperature), config_overrides=overrides)


DECAYS = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2)
TEMPERATURES = (0.003, 0.01, 0.03)
SWA = SWALinear(end_factor=0.5)
CANDIDATES = {
    "MAP": [make_sgd_method(MAP(), 0.2, decay, Cosine()) for decay in DECAYS],
    "MC-Dropout": make_grid(
        lambda rate, decay: make_sgd_method(MCDropout(rate=rate), 0.1, decay, Cosine()), (0.2, 0.4, 0.6), DECAYS[1:3]
    ),
    "SWAG-Diag": [make_sgd_method(SWAG(rank=0, scale=1.0), 0.1, decay, SWA) for decay in DECAYS],
    "SWAG": [make_sgd_method(SWAG(), 0.1, decay, SWA) for decay in DECAYS],
    "Ensemble": [make_sgd_method(Ensemble(), 0.2, decay, Cosine()) for decay in DECAYS[:3]],
    "SGVB": make_grid(partial(make_variational_method, SGVB), (0.005,), TEMPERATURES, (1.0, 10.0)),
    "SGVB-LRT": make_grid(partial(make_variational_method, LRT), (0.005,), TEMPERATURES, (1.0, 10.0)),
    "SGLD": make_grid(partial(make_sampling_method, SGLD), (0.1, 0.3), (0.003, 0.01, 0.1, 1.0), (10.0,)),
    "SGHMC": make_grid(partial(make_sampling_method, SGHMC), (0.01, 0.03), (0.003, 0.01, 0.1), (10.0,)),
    "Laplace": make_grid(
        lambda temperature, decay: make_sgd_method(Laplace(temperature=temperature), 0.2, decay, Cosine()),
        (0.01, 0.03, 0.1),
        DECAYS[1:3],
    ),
}

COMMON = Comparison(
    source=Digits(),
    model=MODEL,
    posteriors=(MAP(),),
    config=TrainingConfig(epochs=60, num_validations=0),
    num_seeds=5,
)


def select_and_write(
    common: Comparison,
    candidates: Mapping[str, Sequence[Method]],
    radii: Iterable[float],
    folder: Path,
    num_seeds: int,
) -> None:
    """Select settings and radii, and write the comparison on test data as a configuration.

    Args:
        common: Data, model and training configuration of all trials.
        candidates: Settings to select from, by method.
        radii: Radii of SAM to select from.
        folder: Folder for trials, `selection.json` and `config.yaml`.
        num_seeds: Number of seeds in the configuration that is written.
    """
    methods = select_methods(common, candidates, [SAM(rho=rho) for rho in radii], folder, num_extensions=0)
    config = {
        "data": to_spec(common.source),
        "model": to_spec(common.model),
        "posteriors": [to_spec(method)["init_args"] for method in methods],
        "epochs": common.config.epochs,
        "batch_size": common.config.batch_size,
        "num_validations": 10,
        "num_seeds": num_seeds,
        "num_draws": common.num_draws,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    select_and_write(COMMON, CANDIDATES, RADII, Path(sys.argv[1]), num_seeds=10)
