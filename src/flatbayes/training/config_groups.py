"""Groups of training hyperparameters: loss and gradient, snapshots, precision, and devices."""

import math
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

import numpy as np

from flatbayes.core.names import check_choice

MAX_CONFIG_INT = 10**9
"""Largest integer option; products of two of them are still exact as floats of 64 bits."""
Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
MemberTraining = Literal["one_by_one", "auto", "vectorized", "workers"]
DistributedStrategy = Literal["ddp", "fsdp"]
AscentScope = Literal["local", "synchronised"]


def check_integer(name: str, value: int, minimum: int = 1) -> None:
    """Refuse an integer option that is no integer, below `minimum` or above `MAX_CONFIG_INT`."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if not minimum <= value <= MAX_CONFIG_INT:
        raise ValueError(f"{name} must be at least {minimum} and at most {MAX_CONFIG_INT}, got {value}.")


def convert_numbers(config: Any) -> None:
    """Make NumPy numbers among the fields of a frozen dataclass numbers of Python, which torch and JSON take too.

    Whole numbers of a floating type, as YAML and searches of hyperparameters give them, become integers where the
    field is one.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and value.is_integer() and field.type in (int, int | None):
            value = int(value)
        object.__setattr__(config, field.name, value)


@dataclass(frozen=True)
class OptimizationConfig:
    """Loss and gradient of a step.

    Attributes:
        label_smoothing: Fraction of each target that is spread evenly over all classes, in the training loss.
        clip_norm: Largest norm of the final gradient; None does not clip. `auto` is 1 unless targets are classes.
        accumulation_steps: Micro-batches that the batch of a step is split into, to save memory.
        initial_noise: Noise of a regression at the start: `residuals` of a linear fit; None is 0.7 of the targets'.
        prior_factor: Factor on the precision of the prior. `auto`: chosen on validation data.

    Examples:
        >>> optimization = OptimizationConfig(
        ...     label_smoothing=0.1, clip_norm=1.0, accumulation_steps=2
        ... )
        >>> settings = config.with_options(optimization=optimization)
        >>> fit(MLP, data, MAP(), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    label_smoothing: float = 0.0
    clip_norm: float | Literal["auto"] | None = "auto"
    accumulation_steps: int = 1
    initial_noise: Literal["residuals"] | None = "residuals"
    prior_factor: float | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        convert_numbers(self)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is a fraction of the target, at least 0 and below 1; got {self.label_smoothing}."
            )
        clip_norm = self.clip_norm
        if clip_norm not in (None, "auto") and (isinstance(clip_norm, str) or not 0 < clip_norm < math.inf):
            raise ValueError(f"clip_norm must be positive and finite, or auto or None, got {clip_norm!r}.")
        if self.initial_noise not in (None, "residuals"):
            raise ValueError(f"initial_noise must be residuals or None, got {self.initial_noise!r}.")
        factor = self.prior_factor
        if factor not in (None, "auto") and (isinstance(factor, str) or not 0 < factor < math.inf):
            raise ValueError(f"prior_factor must be positive and finite, or auto or None, got {factor!r}.")
        check_integer("accumulation_steps", self.accumulation_steps)


@dataclass(frozen=True)
class CollectionConfig:
    """Collection of weight snapshots (SWAG, SGLD, SGHMC), and of data to re-estimate normalization statistics.

    Attributes:
        start_fraction: Fraction of training, or of each cycle of the schedule, after which snapshots are collected.
        snapshots_per_epoch: Snapshots collected per epoch from then on; 0.5 is one in every second epoch. None is
            one, or in a short training as many as give ten in total.
        num_norm_batches: Batches of training inputs that are kept to re-estimate BatchNorm statistics of draws.

    Examples:
        >>> settings = TrainingConfig(
        ...     epochs=4, collection=CollectionConfig(start_fraction=0.5, snapshots_per_epoch=2)
        ... )
        >>> fitted = fit(MLP, data, SWAG(rank=2), config=settings)
        >>> int(fitted.states[0].statistics["count"])
        4
    """

    start_fraction: float = 0.7
    snapshots_per_epoch: float | None = None
    num_norm_batches: int = 20

    def __post_init__(self) -> None:
        convert_numbers(self)
        if not 0 <= self.start_fraction < 1:
            raise ValueError(
                f"start_fraction is a fraction of training, at least 0 and below 1; got {self.start_fraction}."
            )
        if self.snapshots_per_epoch is not None:
            if not 0 < self.snapshots_per_epoch <= MAX_CONFIG_INT:
                raise ValueError(
                    f"snapshots_per_epoch must be positive and at most {MAX_CONFIG_INT}, got "
                    f"{self.snapshots_per_epoch}."
                )
            if self.snapshots_per_epoch == int(self.snapshots_per_epoch):  # the same number, written in one way
                object.__setattr__(self, "snapshots_per_epoch", int(self.snapshots_per_epoch))
        check_integer("num_norm_batches", self.num_norm_batches)


@dataclass(frozen=True)
class PrecisionConfig:
    """Floating-point precision, memory layout and compilation.

    Attributes:
        mode: Floating-point type of the forward and backward pass.
        channels_last: Store channels innermost. None: large kernels on a CPU only.
        compile: Compile the network with torch.compile, for long runs of large networks.
        cudnn_benchmark: Let cuDNN take the fastest algorithm for each shape of a convolution, on a CUDA device;
            rounding then differs from run to run.
        cuda_graph: Record the passes of a step as one CUDA graph, which is faster for small networks on a CUDA
            device. For networks without dropout.

    Examples:
        >>> settings = config.with_options(precision=PrecisionConfig("bf16-mixed"))
        >>> fit(MLP, data, MAP(), config=settings).predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    mode: Precision = "32-true"
    channels_last: bool | None = None
    compile: bool = False
    cudnn_benchmark: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True)
class DistributionConfig:
    """Devices and processes.

    Attributes:
        accelerator: auto, cpu, cuda or mps. `auto` is the value of the environment variable FLATBAYES_ACCELERATOR,
            or else the GPU if there is one.
        devices: Devices, one process each, that share the batch of a step; `auto` is one, or as many as torchrun has
            started processes.
        strategy: What each of several processes holds of the network: `ddp`, all of it; or `fsdp`, a shard, for
            networks too large for one device (`MAP` and `SWAG`).
        ascent_scope: Batch of the adversarial perturbation of several processes: `local`, the share of each; or
            `synchronised`, the whole batch.
        members: Training of the networks of an ensemble: `one_by_one`; `workers`, processes, one per GPU or core;
            `vectorized` with `torch.func.vmap`; or `auto`, vectorized where that works and is faster.

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
        convert_numbers(self)
        if self.devices != "auto" and (not isinstance(self.devices, int) or self.devices < 1):
            raise ValueError(f"devices must be auto or a number of devices, at least 1, got {self.devices!r}.")
        check_choice("strategy", self.strategy, DistributedStrategy)
        check_choice("ascent_scope", self.ascent_scope, AscentScope)
        check_choice("members", self.members, MemberTraining)
