"""One step of Lightning's automatic optimisation as a closure that can be called again.

The first call is Lightning's own: it does what it would do without us, once. Micro-batches of an accumulated gradient
have by then had their forward and backward pass, at the same weights, when they came. Every later call repeats all of
them, with the random numbers that each had, and silently: nothing is logged, and metrics do not count.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from flatbayes.core.context import get_batch_fraction
from flatbayes.core.randomness import RandomState


@dataclass(frozen=True)
class MicroBatch:
    """A call of `training_step`.

    Attributes:
        args: What it was called with.
        kwargs: What it was called with by name.
        rng_state: The random state that it found.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng_state: RandomState


@dataclass
class StepClosure:
    """The closure of a step, in the sense of flatbayes.

    Attributes:
        trainer: Runs the training.
        module: What is trained.
        training_step: Its own, to be repeated.
        zero_grad: Forgets all gradients.
        lightning_closure: Lightning's own closure, for the last micro-batch.
        micro_batches: All that belong to the step; filled by the time that `first` returns.
        losses: Loss of each, as a part of that of the step; None where `training_step` has returned None.
    """

    trainer: Trainer
    module: LightningModule
    training_step: Callable[..., Any]
    zero_grad: Callable[[], None]
    lightning_closure: Callable[[], Any]
    micro_batches: list[MicroBatch]
    losses: list[Tensor | None]
    _start_rng_state: RandomState | None = field(default=None, init=False)
    _weight_versions: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._weight_versions = get_weight_versions(self.module)

    def __call__(self) -> Tensor:
        """The gradient at the weights as they are, and the detached loss.

        Raises:
            RuntimeError: The first gradient of a step is asked for elsewhere than Lightning has accumulated it.
        """
        if self._start_rng_state is not None:
            return self._rerun_micro_batches(self._start_rng_state)
        self._start_rng_state = RandomState.capture(self.module)
        if self.micro_batches and (
            get_batch_fraction() < 1 or self._weight_versions != get_weight_versions(self.module)
        ):
            raise RuntimeError(
                "With accumulate_grad_batches above 1, Lightning has taken the gradients of all micro-batches but "
                "the last at the weights themselves, and this flatness asks for the first gradient of a step "
                "elsewhere, or with a part of the batch. Use SAM or another that begins at the weights with the "
                "whole batch, or accumulate_grad_batches=1."
            )
        self.lightning_closure()
        return self._sum_losses(self.losses)

    @torch.enable_grad()
    def _rerun_micro_batches(self, start_rng_state: RandomState) -> Tensor:
        # Whoever replays noise has put us back to where the last micro-batch began; each has its own beginning.
        same_noise = RandomState.capture(self.module).equals(start_rng_state)
        losses = list[Tensor | None]()
        with suppress_logging(self.module), override_methods(self.module, training_step=self.training_step):
            self.zero_grad()
            for micro_batch in self.micro_batches:
                if same_noise:
                    micro_batch.rng_state.restore()
                loss = extract_loss(self.trainer.strategy.training_step(*micro_batch.args, **micro_batch.kwargs))
                if loss is None:
                    continue
                part = loss / self.trainer.accumulate_grad_batches
                self.trainer.strategy.backward(part, self.trainer.optimizers[0])
                losses.append(part.detach())
        return self._sum_losses(losses)

    def _sum_losses(self, losses: list[Tensor | None]) -> Tensor:
        parts = [loss for loss in losses if loss is not None]
        return torch.stack(parts).sum() if parts else torch.zeros((), device=self.module.device)


def extract_loss(output: Any) -> Tensor | None:
    """What `training_step` has returned, without what is not the loss."""
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss


def get_weight_versions(module: nn.Module) -> list[tuple[int, int]]:
    """Where the parameters are in memory, and how often they were written to: another list if weights have moved."""
    return [(param.data_ptr(), param._version) for param in module.parameters()]


@contextmanager
def override_methods(module: nn.Module, **methods: Callable[..., Any]) -> Iterator[None]:
    """Inside, this one module has other methods."""
    own = {name: vars(module)[name] for name in methods if name in vars(module)}
    vars(module).update(methods)
    try:
        yield
    finally:
        for name in methods:
            vars(module).pop(name, None)
        vars(module).update(own)


@contextmanager
def suppress_logging(module: LightningModule) -> Iterator[None]:
    """Inside, `self.log` and `self.log_dict` do nothing, and metrics are copies that are thrown away."""
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
