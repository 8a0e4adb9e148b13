"""The methods: rivals with their published settings, and ours, with the default and with the rivals' training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from flatbayes import BSAM, IVON, LRT, MAP, SAM, SGVB, SVGD, SWAG, Ensemble, Posterior, TrainingConfig
from flatbayes.core import OptimizerFactory
from flatbayes.flatness import (
    GSAM,
    WSAM,
    Delayed,
    Flatness,
    FriendlySAM,
    MSharpness,
    Plain,
    StableSAM,
    VaSSO,
)
from flatbayes.posteriors.presets import ENTROPY_MCMC_CIFAR10
from flatbayes.training import CollectionConfig, Cosine, Cyclical, Schedule, SWALinear
from flatbayes.training.optimizers import MIN_PRIOR_PRECISION, strengthen_prior
from flatbayes.training.presets import make_fsgld

Group = Literal["reference", "standard", "rival", "ours", "ours, default training"]
NUM_MEMBERS, NUM_CYCLES, CYCLE_END_EPOCHS = 5, 4, 2
RHO = 0.05


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes:
        name: Label in the tables.
        group: Rivals as published; ours with the same fixed length of training; ours with the default training, which
            stops early and selects the width of the posterior on validation data.
        posterior: The posterior.
        flatness: The flatness.
        optimizer: Builds the optimizer with its published rate; None for the default one of the posterior.
        schedule: Learning rate over training.
        gradients: Gradients of a step of one member.
        members: Networks that are trained one after the other.
        budget_factor: Multiple of the common number of gradients.
        options: Further training options.
    """

    name: str
    group: Group
    posterior: Posterior
    flatness: Flatness = Plain()
    optimizer: OptimizerFactory | None = None
    schedule: Schedule = Cosine()
    gradients: float = 1.0
    members: int = 1
    budget_factor: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gradients_per_step(self) -> float:
        """Gradients of a step of all members."""
        return self.gradients * self.flatness.gradients_per_step * self.members

    def make_config(self, factor: float, budget: int, num_data: int, batch_size: int) -> TrainingConfig:
        """The training with as many gradients as the budget has."""
        num_steps = self.budget_factor * budget / self.gradients_per_step
        optimizer = self.optimizer or self.posterior.default_optimizer
        if self.group == "ours, default training":
            optimizer = strengthen_prior(optimizer, MIN_PRIOR_PRECISION / num_data)
            return TrainingConfig(
                min_epochs=1,
                min_steps=int(num_steps),
                batch_size=batch_size,
                optimizer=scale_learning_rate(optimizer, factor),
            )
        epochs = max(1, round(num_steps / (num_data // batch_size)))
        config = TrainingConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=scale_learning_rate(optimizer, factor),
            schedule=self.schedule,
            num_validations=0,
        )
        if isinstance(self.schedule, Cyclical):  # the last epochs of each cycle
            start = 1 - min(CYCLE_END_EPOCHS / (epochs / NUM_CYCLES), 0.5)
            config = config.with_options(collection=CollectionConfig(start_fraction=start, snapshots_per_epoch=1))
        return config.with_options(**self.options)


def scale_learning_rate(optimizer: OptimizerFactory, factor: float) -> OptimizerFactory:
    """The optimizer, a `functools.partial`, with a multiple of its learning rate."""
    if not isinstance(optimizer, partial):
        raise TypeError(f"The learning rate must be in a functools.partial, got {optimizer!r}.")
    return partial(optimizer.func, **optimizer.keywords | {"lr": factor * optimizer.keywords["lr"]})


def make_sgd(lr: float = 0.1, weight_decay: float = 5e-4, momentum: float = 0.9) -> OptimizerFactory:
    """SGD with everything but its parameters."""
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)


def list_entries(num_data: int) -> list[Entry]:
    """All methods, in the order in which they run; the noise of fSGLD depends on the number of examples."""
    fsgld, smoothing = make_fsgld(num_data)
    sgd, plain_sgd = make_sgd(), partial(make_sgd, momentum=0.0)
    network = partial(Entry, posterior=MAP(), optimizer=sgd)
    swag = partial(Entry, posterior=SWAG(), optimizer=sgd, schedule=SWALinear())
    ensemble = partial(Entry, posterior=Ensemble(size=NUM_MEMBERS), optimizer=sgd, members=NUM_MEMBERS)
    ivon = IVON(initial_hessian=0.5, beta2=0.99999)
    default = partial(Entry, group="ours, default training")
    sam = SAM(rho=RHO)
    return [
        ensemble("Ensemble, 5 x the gradients", "reference", budget_factor=NUM_MEMBERS),
        network("SGD", "standard"),
        network("SAM", "standard", flatness=sam),
        ensemble("Ensemble", "standard"),
        swag("SWAG", "standard"),
        Entry("IVON", "rival", ivon, optimizer=plain_sgd(0.2, 2e-4)),
        Entry(
            "bSAM",
            "rival",
            BSAM(rho=0.01, prior_precision=40.0, temperature=0.25),
            optimizer=plain_sgd(0.5, 0.0),
            gradients=2,
        ),
        Entry(
            "Entropy-MCMC",
            "rival",
            ENTROPY_MCMC_CIFAR10,
            optimizer=plain_sgd(0.5),
            schedule=Cyclical(num_cycles=NUM_CYCLES),
        ),
        Entry("fSGLD", "rival", fsgld, smoothing, optimizer=plain_sgd(), schedule=Cosine(end_factor=0.1)),
        Entry("SVGD", "rival", SVGD(num_particles=NUM_MEMBERS), gradients=NUM_MEMBERS),
        Entry("FHBI", "rival", SVGD(num_particles=NUM_MEMBERS, rho=RHO), gradients=2 * NUM_MEMBERS),
        network("Friendly-SAM", "rival", flatness=FriendlySAM(rho=0.05, sigma=1.0, momentum=0.9)),
        network("VaSSO", "rival", flatness=VaSSO(rho=0.05, theta=0.9)),
        network("WSAM", "rival", flatness=WSAM(rho=0.05, gamma=0.9)),
        network("StableSAM", "rival", flatness=StableSAM(rho=0.05)),
        network("GSAM", "rival", flatness=GSAM(rho=0.05, alpha=0.4)),
        network("m-sharpness", "rival", flatness=MSharpness(sam, num_sub_batches=8)),
        swag("flat SWAG", "ours", flatness=sam),
        ensemble("flat Ensemble", "ours", flatness=sam),
        Entry("flat SGVB", "ours", SGVB(), sam),
        Entry("flat IVON", "ours", ivon, sam, optimizer=plain_sgd(0.2, 2e-4)),
        Entry("flat SVGD", "ours", SVGD(num_particles=NUM_MEMBERS), sam, gradients=NUM_MEMBERS),
        default("flat SWAG, default", posterior=SWAG(), flatness=SAM()),
        default("flat SGVB, default", posterior=SGVB(), flatness=SAM()),
        default("flat LRT, default", posterior=LRT(), flatness=SAM()),
        default("flat IVON, default", posterior=IVON(), flatness=SAM()),
        default("flat Ensemble, default", posterior=Ensemble(size=NUM_MEMBERS), flatness=SAM(), members=NUM_MEMBERS),
        default("SWAG, flat from 70 %, default", posterior=SWAG(), flatness=Delayed(SAM())),
    ]
