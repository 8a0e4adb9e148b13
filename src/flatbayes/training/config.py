"""How a network is trained, whatever the posterior and the flatness: one frozen dataclass."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from flatbayes.training.schedules import Schedule, SWALinear, is_collection_step, select_evenly_spaced_epochs

MIN_SNAPSHOTS = 10
"""Snapshots that a training collects in all, however short, unless it is told how many an epoch."""
Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
MemberTraining = Literal["one_by_one", "auto", "vectorized", "workers"]
DistributedStrategy = Literal["ddp", "fsdp"]
AscentScope = Literal["local", "synchronised"]
"""Whose gradient says where the worst point is: that of each process's share of the batch, or that of all of it."""
MAX_CONFIG_INT = 10**9
"""Nobody means more; products of what is below still have a name among the floats."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training data; 0 takes the weights of a trained network as they are.
        batch_size: Examples per step.
        optimizer: Builds the optimizer from parameters: a class of torch.optim or your own, with its arguments.
            Its weight decay is the prior unless the posterior has a prior_precision. None is the posterior's usual
            one: SGD with lr 0.1, or Adam with lr 0.001 for variational inference.
        schedule: Learning rate over training.
        collect_from: Share of training, or of each cycle of the schedule, after which snapshots of the weights are
            collected (by SWAG, SGLD, SGHMC).
        collect_per_epoch: Snapshots collected per epoch from then on; None is one, or as many more as it takes in a
            short training for ten in all.
        label_smoothing: Share of each target that is spread evenly over all classes, in the loss of training alone:
            curves and metrics measure the targets as they are. For classification.
        clip_norm: Largest norm of the final gradient; None does not clip, but on the command line a regression is
            clipped at 1.
        accumulate: Micro-batches that the batch of a step is cut into, to save memory.
        precision: Numbers of the forward and backward pass.
        channels_last: Store images and convolutions with the channels innermost, which is faster on some devices.
        compile: Compile the network by torch.compile: slow to start, worth it for long runs of large networks.
        accelerator: Device to train on: auto, cpu, cuda or mps.
        validations: Times over training that the network is measured on the validation part, for the curves; 0 for
            never. It decides nothing.
        validate_every: Epochs between two measurements, instead of so many times; the last epoch is measured too.
        statistics_batches: Batches of training inputs kept to re-estimate BatchNorm statistics of draws; only
            where the posterior and the network need them.
        members: How the networks of an ensemble are trained: `one_by_one`; `workers`, each in a process of its own,
            as many at a time as there are cores; `vectorized`, stacked in one, which is an error where it cannot give
            the same up to rounding; or `auto`, together where that works and networks are so small that it is faster.
            Together every network's weights are held at once. A training is the same bit for bit only if it is
            repeated the same way, so the way is not chosen by the clock, and not by default.
        devices: Devices of a machine, one process each, that train one network together; `auto` is one, or as many
            as torchrun has started processes. The batch of a step is divided among them. See docs/distributed.md.
        strategy: What each of several processes holds of the network: `ddp`, all of it; or `fsdp`, a part, for
            networks too large for one device, with `MAP` and `SWAG`.
        ascent: Where several processes look for the worst point around the weights: `local`, each for its own share
            of the batch, which costs no communication; or `synchronised`, for all of it, as one process would.
    """

    epochs: int = 60
    batch_size: int = 64
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Schedule = SWALinear()
    collect_from: float = 0.7
    collect_per_epoch: int | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False
    accelerator: str = "auto"
    validations: int = 20
    validate_every: int | None = None
    statistics_batches: int = 20
    members: MemberTraining = "one_by_one"
    devices: int | Literal["auto"] = "auto"
    strategy: DistributedStrategy = "ddp"
    ascent: AscentScope = "local"

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= MAX_CONFIG_INT:
            raise ValueError(f"epochs must be at least 0 and at most {MAX_CONFIG_INT}, got {self.epochs}.")
        for name in ("batch_size", "collect_per_epoch", "accumulate", "statistics_batches"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_CONFIG_INT:
                raise ValueError(f"{name} must be at least 1 and at most {MAX_CONFIG_INT}, got {value}.")
        if not 0 <= self.validations <= MAX_CONFIG_INT:
            raise ValueError(f"validations must be at least 0 and at most {MAX_CONFIG_INT}, got {self.validations}.")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, got {self.validate_every}.")
        if self.members not in get_args(MemberTraining):
            raise ValueError(f"members must be {' or '.join(get_args(MemberTraining))}, got {self.members!r}.")
        if self.devices != "auto" and (not isinstance(self.devices, int) or self.devices < 1):
            raise ValueError(f"devices must be auto or a number of devices, at least 1, got {self.devices!r}.")
        if self.strategy not in get_args(DistributedStrategy):
            raise ValueError(f"strategy must be {' or '.join(get_args(DistributedStrategy))}, got {self.strategy!r}.")
        if self.ascent not in get_args(AscentScope):
            raise ValueError(f"ascent must be {' or '.join(get_args(AscentScope))}, got {self.ascent!r}.")
        if not 0 <= self.collect_from < 1:
            raise ValueError(f"collect_from is a share of training, at least 0 and below 1; got {self.collect_from}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is a share of the target, at least 0 and below 1; got {self.label_smoothing}."
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise ValueError(f"clip_norm must be positive and finite, got {self.clip_norm}.")

    def validation_epochs(self) -> set[int]:
        """The epochs, counted from 1, after which the network is measured on the validation part."""
        every = self.validate_every
        return (
            select_evenly_spaced_epochs(self.epochs, self.validations)
            if every is None
            else {*range(every, self.epochs, every), self.epochs}
        )

    def is_collection_step(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a snapshot is taken after this step, counted from 0."""
        total_steps, cycles = self.epochs * steps_per_epoch, self.schedule.num_cycles
        often = self.collect_per_epoch or max(1, math.ceil(MIN_SNAPSHOTS / (self.epochs * (1 - self.collect_from))))
        return is_collection_step(step, steps_per_epoch, total_steps, self.collect_from, often, cycles)


FINE_TUNING = TrainingConfig(
    epochs=5,
    schedule=SWALinear(decay_start=0.0, decay_end=0.0, end_factor=0.3),
    collect_from=0.0,
    collect_per_epoch=4,
)
"""For a network that is trained already: a few epochs at three tenths of the optimizer's rate throughout, with
snapshots from the beginning."""
