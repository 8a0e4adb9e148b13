"""Training hyperparameters: a frozen dataclass with groups, independent of posterior and flatness."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import nn

from flatbayes.core.components import resolve_component
from flatbayes.core.names import format_suggestion
from flatbayes.core.renames import explain_option
from flatbayes.core.spec import to_spec
from flatbayes.likelihoods import Bernoulli, DistributionLikelihood, Gaussian, Likelihood
from flatbayes.training.config_groups import (
    CollectionConfig,
    DistributionConfig,
    OptimizationConfig,
    PrecisionConfig,
    check_integer,
    convert_numbers,
)
from flatbayes.training.optimizers import resolve_optimizer
from flatbayes.training.schedules import (
    Schedule,
    SWALinear,
    get_automatic_snapshots_per_epoch,
    is_collection_step,
    select_evenly_spaced_epochs,
)

CLIP_NORM = 1.0
"""Of regression and several labels, where the user gives none."""
MAX_AUTOMATIC_SNAPSHOTS = 100
"""Largest number of snapshots of a training whose number of epochs follows from `min_steps`."""


_OF_OPTIMIZER = "It is an option of the optimizer: optimizer=functools.partial(torch.optim.AdamW, lr=0.001)."
OTHER_NAMES = {
    "lr": _OF_OPTIMIZER,
    "learning_rate": _OF_OPTIMIZER,
    "weight_decay": _OF_OPTIMIZER,
    "device": "Did you mean distribution.accelerator, such as 'cpu' or 'cuda'?",
}
"""What to write for options that other libraries have."""


@dataclass(frozen=True)
class TrainingConfig:
    """Training hyperparameters.

    Attributes:
        epochs: Passes over the training data; 0 keeps the weights of a trained network. None: as many as reach both
            `min_epochs` and `min_steps`.
        min_epochs: Fewest passes over the training data if `epochs` is None.
        min_steps: Fewest optimizer steps if `epochs` is None.
        batch_size: Examples per step, over all processes.
        optimizer: Builds the optimizer: a class of torch.optim or your own. Its weight decay is the prior unless the
            posterior has one. By default SGD, lr 0.1 (tables: 0.03); transformers and large trained networks:
            AdamW, lr 3e-4, 1e-3; variational: Adam, lr 1e-3.
        schedule: Learning rate over training.
        num_validations: Evaluations on the validation split during training; 0 for never.
        validate_every_n_epochs: Epochs between two evaluations, instead of `num_validations`.
        early_stopping: Collect snapshots from the weights of the lowest validation NLL on. None: if `epochs` is.
        optimization: Label smoothing, gradient clipping and accumulation.
        collection: Collection of weight snapshots.
        precision: Floating-point precision, memory layout and compilation.
        distribution: Devices and processes.

    Examples:
        >>> from functools import partial
        >>> adam = partial(torch.optim.Adam, lr=0.001)
        >>> settings = TrainingConfig(epochs=2, batch_size=32, optimizer=adam, schedule=Cosine())
        >>> fit(MLP, data, MAP(), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    epochs: int | None = None
    min_epochs: int = 60
    min_steps: int = 3000
    batch_size: int = 64
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Schedule = SWALinear()
    num_validations: int = 20
    validate_every_n_epochs: int | None = None
    early_stopping: bool | None = None
    optimization: OptimizationConfig = OptimizationConfig()
    collection: CollectionConfig = CollectionConfig()
    precision: PrecisionConfig = PrecisionConfig()
    distribution: DistributionConfig = DistributionConfig()

    def __post_init__(self) -> None:
        convert_numbers(self)
        if self.epochs is not None:
            check_integer("epochs", self.epochs, minimum=0)
        check_integer("min_epochs", self.min_epochs)
        check_integer("min_steps", self.min_steps)
        check_integer("batch_size", self.batch_size)
        check_integer("num_validations", self.num_validations, minimum=0)
        if self.validate_every_n_epochs is not None:
            check_integer("validate_every_n_epochs", self.validate_every_n_epochs)
        object.__setattr__(self, "optimizer", resolve_optimizer(self.optimizer))
        object.__setattr__(self, "schedule", resolve_component(self.schedule, Schedule, "schedule"))
        for name, group in CONFIG_GROUPS.items():
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, group(**getattr(self, name)))
            if not isinstance(getattr(self, name), group):
                hint = explain_option(name, path="flatbayes.training.TrainingConfig") or ""
                raise ValueError(f"{name} must be a {group.__name__}, got {getattr(self, name)!r}. {hint}".rstrip())

    def with_options(self, **options: Any) -> Self:
        """A copy with other values.

        Args:
            options: New values by name. An option of a group has a dotted name, as on the command line,
                `with_options(**{"collection.start_fraction": 0.5})`, or stands in a mapping, as in YAML,
                `with_options(collection={"start_fraction": 0.5})`; the other options of the group keep their values.

        Raises:
            ValueError: There is no such option.
        """
        changes: dict[str, Any] = {}
        for name, value in options.items():
            group, dot, option = name.partition(".")
            if dot or (group in CONFIG_GROUPS and isinstance(value, Mapping)):
                changes[group] = changes.get(group, {}) | ({option: value} if dot else value)
            else:
                changes[name] = value
        check_option_names(changes)
        groups = {
            name: replace(getattr(self, name), **value)
            for name, value in changes.items()
            if name in CONFIG_GROUPS and isinstance(value, Mapping)
        }
        return replace(self, **changes | groups)

    def to_dict(self) -> dict[str, Any]:
        """Options as plain data, groups nested: the form of a configuration file."""
        spec: dict[str, Any] = to_spec(self)["init_args"]
        return spec | {name: spec[name]["init_args"] for name in CONFIG_GROUPS}

    def resolve_epochs(self, steps_per_epoch: int) -> Self:
        """The configuration with a number of epochs, for data of a known number of steps per epoch.

        Snapshots that are collected in every epoch by default are then collected in every few epochs, where there
        would be more than `MAX_AUTOMATIC_SNAPSHOTS`.

        Args:
            steps_per_epoch: Optimizer steps in an epoch.
        """
        if self.epochs is not None:
            return self
        epochs, collection = max(self.min_epochs, math.ceil(self.min_steps / steps_per_epoch)), self.collection
        spacing = math.ceil(round(epochs * (1 - collection.start_fraction)) / MAX_AUTOMATIC_SNAPSHOTS)
        if collection.snapshots_per_epoch is None and spacing > 1:
            collection = replace(collection, snapshots_per_epoch=1 / spacing)
        stops_early = self.early_stopping is None or self.early_stopping
        return replace(self, epochs=epochs, collection=collection, early_stopping=stops_early)

    def resolve_clip_norm(self, likelihood: Likelihood) -> Self:
        """The configuration with a number or None for `optimization.clip_norm`.

        Args:
            likelihood: Distribution of the targets. The gradient of a log density of numbers grows without bound as
                the noise falls, that of a count with its mean, that of several labels with their number.
        """
        if self.optimization.clip_norm != "auto":
            return self
        clip_norm = CLIP_NORM if isinstance(likelihood, Bernoulli | DistributionLikelihood | Gaussian) else None
        return replace(self, optimization=replace(self.optimization, clip_norm=clip_norm))

    @property
    def stops_early(self) -> bool:
        """Whether the training stops early, if there are validation examples."""
        is_wanted = self.epochs is None if self.early_stopping is None else self.early_stopping
        return is_wanted and (self.num_validations > 0 or self.validate_every_n_epochs is not None)

    @property
    def num_epochs(self) -> int:
        """Number of epochs.

        Raises:
            ValueError: It depends on the data: `resolve_epochs` gives it.
        """
        if self.epochs is None:
            raise ValueError("epochs is None, so it depends on the number of batches: call resolve_epochs.")
        return self.epochs

    def validation_epochs(self) -> set[int]:
        """The epochs, counted from 1, after which the network is evaluated on the validation split."""
        every = self.validate_every_n_epochs
        return (
            select_evenly_spaced_epochs(self.num_epochs, self.num_validations)
            if every is None
            else {*range(every, self.num_epochs, every), self.num_epochs}
        )

    @property
    def snapshots_per_epoch(self) -> float:
        """Snapshots per epoch after the start of collection, also where the number is automatic."""
        automatic = get_automatic_snapshots_per_epoch(self.num_epochs, self.collection.start_fraction)
        return self.collection.snapshots_per_epoch or automatic

    def is_collection_step(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a snapshot is collected after this step, counted from 0."""
        total_steps, start = self.num_epochs * steps_per_epoch, self.collection.start_fraction
        return is_collection_step(
            step, steps_per_epoch, total_steps, start, self.snapshots_per_epoch, self.schedule.num_cycles
        )


CONFIG_GROUPS: dict[str, type] = {
    "optimization": OptimizationConfig,
    "collection": CollectionConfig,
    "precision": PrecisionConfig,
    "distribution": DistributionConfig,
}
"""Options of `TrainingConfig` that are groups of options."""

FINE_TUNING = TrainingConfig(
    min_epochs=5,
    min_steps=300,
    schedule=SWALinear(decay_start=0.0, decay_end=0.0, end_factor=0.3, warmup=0.1),
    collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=4),
)
"""For a pretrained network: 5 epochs, and at least 300 steps, at a constant 0.3 of the optimizer's learning rate.

Snapshots are collected from the first epoch on. Over the first tenth the rate rises: without this warm-up SAM may
stay at the loss of guessing for long."""


def check_option_names(options: Mapping[str, Any]) -> None:
    """Refuse names, also in the mappings of groups, that are not options of `TrainingConfig`.

    Raises:
        ValueError: There is no such option; the message has the new name of an option that was renamed.
    """
    names = {name: {field.name for field in fields(group)} for name, group in CONFIG_GROUPS.items()}
    top_level = {field.name for field in fields(TrainingConfig)}
    unknown = [name for name in options if name not in top_level] + [
        f"{group}.{name}"
        for group, value in options.items()
        if group in names and isinstance(value, Mapping)
        for name in value
        if name not in names[group]
    ]
    if unknown:
        available = sorted(top_level - names.keys()) + [f"{g}.{name}" for g in names for name in sorted(names[g])]
        hints = [
            explain_option(name, path="flatbayes.training.TrainingConfig")
            or OTHER_NAMES.get(name)
            or format_suggestion(name, available)
            for name in unknown
        ]
        raise ValueError(
            " ".join(
                [
                    f"TrainingConfig has no option {', '.join(unknown)}; it has {', '.join(available)}.",
                    *(hint for hint in hints if hint),
                ]
            )
        )
