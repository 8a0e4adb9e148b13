"""Training hyperparameters: a frozen dataclass with groups, independent of posterior and flatness."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

from flatbayes.core.components import resolve_component
from flatbayes.core.names import format_suggestion
from flatbayes.core.renames import explain_option
from flatbayes.core.spec import to_spec
from flatbayes.training.optimizers import resolve_optimizer
from flatbayes.training.schedules import (
    Schedule,
    SWALinear,
    get_automatic_snapshots_per_epoch,
    is_collection_step,
    select_evenly_spaced_epochs,
)

MAX_CONFIG_INT = 10**9
"""Largest integer option; products of two of them are still exact as floats of 64 bits."""
Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
MemberTraining = Literal["one_by_one", "auto", "vectorized", "workers"]
DistributedStrategy = Literal["ddp", "fsdp"]
AscentScope = Literal["local", "synchronised"]


def _check_integer(name: str, value: int, minimum: int = 1) -> None:
    if not minimum <= value <= MAX_CONFIG_INT:
        raise ValueError(f"{name} must be at least {minimum} and at most {MAX_CONFIG_INT}, got {value}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}.")


@dataclass(frozen=True)
class OptimizationConfig:
    """Loss and gradient of a step.

    Attributes:
        label_smoothing: Fraction of each target that is spread evenly over all classes; in the training loss only,
            not in history and metrics.
        clip_norm: Largest norm of the final gradient. None does not clip; the command line clips a regression at 1.
        accumulation_steps: Micro-batches that the batch of a step is split into, to save memory.

    Examples:
        >>> optimization = OptimizationConfig(
        ...     label_smoothing=0.1, clip_norm=1.0, accumulation_steps=2
        ... )
        >>> settings = config.with_options(optimization=optimization)
        >>> fit(MLP, data, MAP(), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is a fraction of the target, at least 0 and below 1; got {self.label_smoothing}."
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be positive and finite, got {self.clip_norm}.")
        _check_integer("accumulation_steps", self.accumulation_steps)


@dataclass(frozen=True)
class CollectionConfig:
    """Collection of weight snapshots (SWAG, SGLD, SGHMC), and of data to re-estimate normalization statistics.

    Attributes:
        start_fraction: Fraction of training, or of each cycle of the schedule, after which snapshots are collected.
        snapshots_per_epoch: Snapshots collected per epoch from then on; None is one, or in a short training as many
            as give ten in total.
        num_norm_batches: Batches of training inputs that are kept to re-estimate the BatchNorm statistics of drawn
            networks, if the posterior and the network need them.

    Examples:
        >>> settings = TrainingConfig(
        ...     epochs=4, collection=CollectionConfig(start_fraction=0.5, snapshots_per_epoch=2)
        ... )
        >>> fitted = fit(MLP, data, SWAG(rank=2), config=settings)
        >>> int(fitted.states[0].statistics["count"])
        4
    """

    start_fraction: float = 0.7
    snapshots_per_epoch: int | None = None
    num_norm_batches: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.start_fraction < 1:
            raise ValueError(
                f"start_fraction is a fraction of training, at least 0 and below 1; got {self.start_fraction}."
            )
        if self.snapshots_per_epoch is not None:
            _check_integer("snapshots_per_epoch", self.snapshots_per_epoch)
        _check_integer("num_norm_batches", self.num_norm_batches)


@dataclass(frozen=True)
class PrecisionConfig:
    """Floating-point precision, memory layout and compilation.

    Attributes:
        mode: Floating-point type of the forward and backward pass.
        channels_last: Store images and convolutions with the channels innermost, which is faster on some devices.
        compile: Compile the network with torch.compile: slow to start, worth it for long runs of large networks.
        cudnn_benchmark: Let cuDNN time its algorithms for each shape of a convolution and take the fastest. It pays
            for convolutional networks on a CUDA device; rounding then differs from run to run.
        cuda_graph: Record the passes of a step as one CUDA graph, which saves the time of launching kernels: it pays
            for small networks on a CUDA device. For networks without dropout, and a flatness that does the same in
            every step.

    Examples:
        >>> settings = config.with_options(precision=PrecisionConfig("bf16-mixed"))
        >>> fit(MLP, data, MAP(), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    mode: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False
    cudnn_benchmark: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True)
class DistributionConfig:
    """Devices and processes.

    Attributes:
        accelerator: Device to train on: auto, cpu, cuda or mps. `auto` is the value of the environment variable
            FLATBAYES_ACCELERATOR, or else the GPU if there is one.
        devices: Devices of a machine, one process each, that share the batch of a step; `auto` is one, or as many
            as torchrun has started processes. See docs/distributed.md.
        strategy: What each of several processes holds of the network: `ddp`, all of it; or `fsdp`, a shard, for
            networks too large for one device (`MAP` and `SWAG`).
        ascent_scope: Batch on which several processes compute the adversarial perturbation: `local`, each on its own
            share of the batch, without communication; or `synchronised`, all on the whole batch, like one process.
        members: How the networks of an ensemble are trained: `one_by_one`; `workers`, in parallel processes, one per
            GPU, or per core if there is none; `vectorized`, stacked in one process with `torch.func.vmap`, an error
            if the result differs by more than rounding; or `auto`, vectorized where that works and the networks are
            small enough to gain from it.

    Examples:
        >>> distribution = DistributionConfig(accelerator="cpu", members="vectorized")
        >>> settings = config.with_options(distribution=distribution)
        >>> fit(MLP, data, Ensemble(size=3), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    strategy: DistributedStrategy = "ddp"
    ascent_scope: AscentScope = "local"
    members: MemberTraining = "one_by_one"

    def __post_init__(self) -> None:
        if self.devices != "auto" and (not isinstance(self.devices, int) or self.devices < 1):
            raise ValueError(f"devices must be auto or a number of devices, at least 1, got {self.devices!r}.")
        _check_choice("strategy", self.strategy, get_args(DistributedStrategy))
        _check_choice("ascent_scope", self.ascent_scope, get_args(AscentScope))
        _check_choice("members", self.members, get_args(MemberTraining))


@dataclass(frozen=True)
class TrainingConfig:
    """Training hyperparameters.

    Attributes:
        epochs: Passes over the training data; 0 keeps the weights of a trained network.
        batch_size: Examples per step, over all processes.
        optimizer: Builds the optimizer from parameters: a class of torch.optim or your own, with its arguments.
            Its weight decay is the prior unless the posterior has a prior_precision. By default SGD with lr 0.1, or
            Adam with lr 0.001 for variational inference.
        schedule: Learning rate over training.
        num_validations: Evaluations on the validation split during training, for the history; 0 for never.
        validate_every_n_epochs: Epochs between two evaluations, instead of `num_validations`; the last epoch is
            evaluated too.
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

    epochs: int = 60
    batch_size: int = 64
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Schedule = SWALinear()
    num_validations: int = 20
    validate_every_n_epochs: int | None = None
    optimization: OptimizationConfig = OptimizationConfig()
    collection: CollectionConfig = CollectionConfig()
    precision: PrecisionConfig = PrecisionConfig()
    distribution: DistributionConfig = DistributionConfig()

    def __post_init__(self) -> None:
        _check_integer("epochs", self.epochs, minimum=0)
        _check_integer("batch_size", self.batch_size)
        _check_integer("num_validations", self.num_validations, minimum=0)
        if self.validate_every_n_epochs is not None:
            _check_integer("validate_every_n_epochs", self.validate_every_n_epochs)
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

    def validation_epochs(self) -> set[int]:
        """The epochs, counted from 1, after which the network is evaluated on the validation split."""
        every = self.validate_every_n_epochs
        return (
            select_evenly_spaced_epochs(self.epochs, self.num_validations)
            if every is None
            else {*range(every, self.epochs, every), self.epochs}
        )

    def is_collection_step(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a snapshot is collected after this step, counted from 0."""
        total_steps, start = self.epochs * steps_per_epoch, self.collection.start_fraction
        automatic = get_automatic_snapshots_per_epoch(self.epochs, start)
        snapshots_per_epoch = self.collection.snapshots_per_epoch or automatic
        return is_collection_step(
            step, steps_per_epoch, total_steps, start, snapshots_per_epoch, self.schedule.num_cycles
        )


CONFIG_GROUPS: dict[str, type] = {
    "optimization": OptimizationConfig,
    "collection": CollectionConfig,
    "precision": PrecisionConfig,
    "distribution": DistributionConfig,
}
"""Options of `TrainingConfig` that are groups of options."""

FINE_TUNING = TrainingConfig(
    epochs=5,
    schedule=SWALinear(decay_start=0.0, decay_end=0.0, end_factor=0.3),
    collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=4),
)
"""For a pretrained network: a few epochs at a constant 0.3 of the optimizer's learning rate, with snapshots from the
first epoch on."""


def check_option_names(options: Mapping[str, Any]) -> None:
    """Refuse names that are not options of `TrainingConfig`.

    Args:
        options: Values by name; those of a group may stand in a mapping.

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
            explain_option(name, path="flatbayes.training.TrainingConfig") or format_suggestion(name, available)
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
