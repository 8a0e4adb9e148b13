"""The three settings: data, network, training, candidates for plain training, and radii."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
import yaml

from flatbayes.core.spec import instantiate
from flatbayes.data import CIFAR10, Digits
from flatbayes.experiments import Comparison, Method
from flatbayes.models import ConvNet
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import CollectionConfig, PrecisionConfig, SWALinear, TrainingConfig
from studies.hyperparameters import digits
from studies.hyperparameters.digits import make_sampling_method, make_sgd, make_variational_method
from studies.interpolation.network import SmallResNet

CONFIG_FOLDER = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Setting:
    """One data set and network with the methods that are compared on it.

    Attributes:
        name: Name on the command line and in the results.
        title: Data and network in words.
        common: Data, network, training configuration and number of seeds.
        candidates: Settings of plain training by method; where there are several, validation data choose.
        radii: Radii of SAM to choose from.
        num_selection_seeds: Seeds over which validation scores are averaged, from 0 on; further seeds train the
            chosen radii only.
        input_shape: Shape of an input.
        train_size: Number of training examples.
        observed: Methods that are evaluated on training examples too; None for all.
    """

    name: str
    title: str
    common: Comparison
    candidates: Mapping[str, Sequence[Method]]
    radii: tuple[float, ...]
    num_selection_seeds: int
    input_shape: tuple[int, ...]
    train_size: int
    observed: tuple[str, ...] | None = None

    @property
    def num_weights(self) -> int:
        """Number of weights of the network."""
        network = self.common.model(input_shape=self.input_shape, num_classes=10)
        return sum(param.numel() for param in network.parameters())


def read_candidates(path: Path) -> dict[str, list[Method]]:
    """The methods of a YAML configuration of `flatbayes compare`, by name, without their flatness."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["posteriors"]
    return {
        entry["name"]: [Method(instantiate(entry["posterior"]), config_overrides=entry["config_overrides"])]
        for entry in entries
    }


def make_digits_mlp() -> Setting:
    """The methods of `configs/digits-all.yaml`, whose settings of plain training were chosen on validation data."""
    return Setting(
        "digits-mlp",
        "digits, 500 images, MLP 64-200-200-10",
        replace(digits.COMMON, config=TrainingConfig(epochs=60, num_validations=10)),
        read_candidates(CONFIG_FOLDER / "digits-all.yaml"),
        radii=(0.1, 0.2, 0.4),
        num_selection_seeds=5,
        input_shape=(1, 8, 8),
        train_size=500,
    )


def make_digits_conv() -> Setting:
    """A convolutional network with dropout 0.05 and the training of `digits-conv.yaml`, which six methods share."""
    config = TrainingConfig(
        epochs=40,
        num_validations=10,
        optimizer=make_sgd(0.2, 1e-4),
        schedule=SWALinear(end_factor=0.5),
    )
    candidates = {
        "MAP": [Method(MAP())],
        "MC-Dropout": [Method(MCDropout())],
        "SWAG-Diag": [Method(SWAG(rank=0, scale=1.0))],
        "SWAG": [Method(SWAG())],
        "Ensemble": [Method(Ensemble())],
        "SGVB": [make_variational_method(SGVB, 0.005, t, 10.0, 40) for t in (0.003, 0.03)],
        "SGVB-LRT": [make_variational_method(LRT, 0.005, t, 10.0, 40) for t in (0.003, 0.03)],
        "SGLD": [make_sampling_method(SGLD, 0.1, t, 10.0, 40) for t in (0.003, 0.03)],
        "SGHMC": [make_sampling_method(SGHMC, 0.01, t, 10.0, 40) for t in (0.003, 0.03)],
        "Laplace": [Method(Laplace(temperature=t)) for t in (0.01, 0.1)],
    }
    common = Comparison(Digits(), partial(ConvNet, width=16, dropout=0.05), [MAP()], config=config, num_seeds=5)
    return Setting(
        "digits-conv", "digits, 500 images, ConvNet(16)", common, candidates, (0.1, 0.2, 0.4), 5, (1, 8, 8), 500
    )


def make_cifar10() -> Setting:
    """A residual network on 5,000 images with augmentation, whose training five methods and an ensemble share."""
    config = TrainingConfig(
        epochs=70,
        batch_size=64,
        num_validations=7,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=SWALinear(decay_start=0.3, decay_end=0.8, end_factor=0.02, warmup=0.05),
        collection=CollectionConfig(start_fraction=0.8),
        precision=PrecisionConfig("bf16-mixed", channels_last=True),
    )
    candidates = {
        "MAP": [Method(MAP())],
        "SWAG-Diag": [Method(SWAG(rank=0, scale=1.0))],
        "SWAG": [Method(SWAG())],
        "Laplace": [Method(Laplace(temperature=t)) for t in (0.01, 0.1, 1.0)],
        "MC-Dropout": [Method(MCDropout())],
        "Ensemble": [Method(Ensemble(size=3))],
        "SGVB": [make_variational_method(SGVB, 0.003, 0.003, 10.0, 70)],
        "SGVB-LRT": [make_variational_method(LRT, 0.003, 0.003, 10.0, 70)],
        "SGLD": [make_sampling_method(SGLD, 0.1, 0.003, 10.0, 70)],
        "SGHMC": [make_sampling_method(SGHMC, 0.01, 0.003, 10.0, 70)],
    }
    common = Comparison(
        CIFAR10(train_size=5000, val_size=1000, pad=2),
        partial(SmallResNet, dropout=0.05),
        [MAP()],
        config=config,
        num_seeds=5,
        num_draws=10,
    )
    return Setting(
        "cifar10",
        "CIFAR-10 (JPEG copies), 5,000 images with crops and flips, residual network of 1.2 million weights",
        common,
        candidates,
        radii=(0.05, 0.1, 0.2),
        num_selection_seeds=1,
        input_shape=(3, 32, 32),
        train_size=5000,
        observed=("MAP",),
    )


MAKERS = {"digits-mlp": make_digits_mlp, "digits-conv": make_digits_conv, "cifar10": make_cifar10}


@cache
def get_setting(name: str) -> Setting:
    """A setting by its name."""
    return MAKERS[name]()
