"""Steps of Lightning's automatic optimization: whether a callback can control them, and a closure to call repeatedly.

The first call of the closure runs Lightning's own closure, as without flatbayes. Earlier micro-batches of an
accumulated gradient have had their forward and backward pass before, at the same weights. Every later call repeats
all micro-batches, each with its own random state, without logging and without updates of metrics. A repetition gets a
copy of the batch as it was before the first call, since a training step may take it apart.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from flatbayes.core.context import get_batch_fraction
from flatbayes.core.names import format_suggestion
from flatbayes.core.randomness import RandomState
from flatbayes.core.signatures import read_signature
from flatbayes.integrations.posterior_steps import override_methods
from flatbayes.integrations.tracker import copy_batch
from flatbayes.posteriors import Posterior

if TYPE_CHECKING:  # modules and trainers may be those of pytorch_lightning as well
    from lightning.pytorch import LightningModule, Trainer

SUPPORTED_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies in which every process holds all weights. Both packages have classes of these names."""


def check_supported(trainer: "Trainer", module: "LightningModule") -> None:
    """Check that the callback can control the steps of a module.

    Raises:
        ValueError: The module uses manual optimization or an iterator of batches, or its weights are sharded.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} uses manual optimization (automatic_optimization=False), which a callback cannot control. Use "
            "the flatness in its training_step: loss = flatness(closure, self)()."
        )
    if "dataloader_iter" in read_signature(module.training_step).parameters:
        raise ValueError(f"training_step of {name} takes an iterator, whose batches cannot be repeated.")
    strategy_names = get_class_names(trainer.strategy)
    if not strategy_names & SUPPORTED_STRATEGIES or "DeepSpeedStrategy" in strategy_names:
        raise ValueError(
            f"{type(trainer.strategy).__name__} is not supported, since it may shard the weights; use one "
            "device, or strategy='ddp'."
        )


def check_steps(posterior: Posterior, accumulation_steps: int, has_loss_scaler: bool) -> None:
    """Check that Lightning computes all gradients of a step within the step, if the posterior needs this."""
    if posterior.uses_gradient_only or (accumulation_steps == 1 and not has_loss_scaler):
        return
    option = "precision='16-mixed'" if has_loss_scaler else f"accumulate_grad_batches={accumulation_steps}"
    instead = "precision='bf16-mixed'" if has_loss_scaler else "accumulate_grad_batches=1 and larger batches"
    raise ValueError(
        f"{type(posterior).__name__} changes the network for every gradient, by weight samples, noise or its dropout "
        f"rate, and with {option} Lightning computes gradients before the step. Use {instead}."
    )


def get_class_names(instance: object) -> set[str]:
    """Names of the class of an object and of its bases."""
    return {cls.__name__ for cls in type(instance).__mro__}


def get_network(module: "LightningModule", name: str) -> nn.Module:
    """The submodule of a name; the module itself for an empty one.

    Raises:
        ValueError: There is none.
    """
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [child for child, _ in module.named_children()]
        raise ValueError(
            f"network={name!r} is no submodule of {type(module).__name__}. {format_suggestion(name, names)}It has "
            f"{', '.join(names)}."
        ) from error


def get_optimizer(trainer: "Trainer", module: "LightningModule") -> Optimizer:
    """The optimizer of the module, whose steps are those of the posterior.

    Raises:
        ValueError: There is none.
    """
    optimizers = trainer.optimizers
    if not optimizers or not optimizers[0].param_groups:  # Lightning has one without parameters in its place
        raise ValueError(
            f"configure_optimizers of {type(module).__name__} returns no optimizer, which takes the steps of the "
            "training: return one, such as torch.optim.AdamW(self.parameters())."
        )
    return optimizers[0]


@dataclass(frozen=True)
class MicroBatch:
    """A call of `training_step`.

    The arguments are copies from before the call, as is the random state.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng_state: RandomState


@dataclass
class MicroBatchRecord:
    """Micro-batches of an optimizer step, recorded as Lightning runs them.

    `losses` has the detached loss of each, divided by their number; None where `training_step` returned None.
    """

    micro_batches: list[MicroBatch] = field(default_factory=list)
    losses: list[Tensor | None] = field(default_factory=list)

    def clear(self) -> None:
        """Remove all micro-batches and losses."""
        self.micro_batches.clear()
        self.losses.clear()


@dataclass
class StepClosure:
    """The closure of a step, as a flatness takes it.

    `training_step` is the module's own method, to be repeated, and `lightning_closure` the closure for the last
    micro-batch. The record is complete when that returns.
    """

    trainer: "Trainer"
    module: "LightningModule"
    training_step: Callable[..., Any]
    zero_grad: Callable[[], None]
    lightning_closure: Callable[[], Any]
    record: MicroBatchRecord
    may_skip_batch: ClassVar[bool] = True  # training_step may return None
    _start_rng_state: RandomState | None = field(default=None, init=False)
    _weight_versions: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._weight_versions = get_weight_versions(self.module)

    def __call__(self) -> Tensor:
        """Compute the gradient at the current weights, and return the detached loss.

        Raises:
            RuntimeError: The first gradient of a step is not at the weights at which Lightning accumulated it.
        """
        if self._start_rng_state is not None:
            return self._rerun_micro_batches(self._start_rng_state)
        self._start_rng_state = RandomState.capture(self.module)
        if self.record.micro_batches and (
            get_batch_fraction() < 1 or self._weight_versions != get_weight_versions(self.module)
        ):
            raise RuntimeError(
                "With accumulate_grad_batches above 1, Lightning computes the gradients of all micro-batches but the "
                "last at the unperturbed weights, and the first gradient of this flatness is at other weights or of "
                "a part of the batch. Use SAM or another flatness whose first gradient is at the weights and of the "
                "whole batch, or accumulate_grad_batches=1."
            )
        self.lightning_closure()
        return self._sum_losses(self.record.losses)

    @torch.enable_grad()
    def _rerun_micro_batches(self, start_rng_state: RandomState) -> Tensor:
        # A flatness that replays noise has restored the state before the last micro-batch; each has a state of its
        # own.
        same_noise = RandomState.capture(self.module).equals(start_rng_state)
        losses = list[Tensor | None]()
        with suppress_logging(self.module), override_methods(self.module, training_step=self.training_step):
            self.zero_grad()
            for micro_batch in self.record.micro_batches:
                if same_noise:
                    micro_batch.rng_state.restore()
                args, kwargs = copy_batch((micro_batch.args, micro_batch.kwargs))
                loss = extract_loss(self.trainer.strategy.training_step(*args, **kwargs))
                if loss is None:
                    continue
                loss = loss / self.trainer.accumulate_grad_batches
                self.trainer.strategy.backward(loss, self.trainer.optimizers[0])
                losses.append(loss.detach())
        return self._sum_losses(losses)

    def _sum_losses(self, losses: list[Tensor | None]) -> Tensor:
        present = [loss for loss in losses if loss is not None]
        return torch.stack(present).sum() if present else torch.zeros((), device=self.module.device)


def extract_loss(output: Any) -> Tensor | None:
    """The loss in the output of `training_step`, which is the loss, a mapping with it, or None."""
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss


def get_weight_versions(module: nn.Module) -> list[tuple[int, int]]:
    """Address and version counter of every parameter, which change if the weights change."""
    return [(param.data_ptr(), param._version) for param in module.parameters()]


@contextmanager
def suppress_logging(module: "LightningModule") -> Iterator[None]:
    """Context in which `self.log` and `self.log_dict` do nothing, and metrics are copies that are discarded."""
    owners = list(_iter_metrics(module))
    try:
        for owner, name, child in owners:
            owner._modules[name] = child.clone()
        with override_methods(module, log=_do_nothing, log_dict=_do_nothing):
            yield
    finally:
        for owner, name, child in owners:
            owner._modules[name] = child


def _iter_metrics(owner: nn.Module) -> Iterator[tuple[nn.Module, str, Metric | MetricCollection]]:
    for name, child in owner._modules.items():
        if isinstance(child, Metric | MetricCollection):
            yield owner, name, child
        elif child is not None:
            yield from _iter_metrics(child)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    pass
