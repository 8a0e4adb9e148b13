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

from flatbayes.core.randomness import RandomState
from flatbayes.core.share import asked_share


@dataclass(frozen=True)
class MicroBatch:
    """A call of `training_step`.

    Attributes:
        args: What it was called with.
        kwargs: What it was called with by name.
        noise: The random state that it found.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    noise: RandomState


@dataclass
class Step:
    """The closure of a step, in the sense of flatbayes.

    Attributes:
        trainer: Runs the training.
        module: What is trained.
        training_step: Its own, to be repeated.
        zero_grad: Forgets all gradients.
        first: Lightning's own closure, for the last micro-batch.
        micro_batches: All that belong to the step; filled by the time that `first` returns.
        losses: Loss of each, as a part of that of the step; None where `training_step` has returned None.
    """

    trainer: Trainer
    module: LightningModule
    training_step: Callable[..., Any]
    zero_grad: Callable[[], None]
    first: Callable[[], Any]
    micro_batches: list[MicroBatch]
    losses: list[Tensor | None]
    _start: RandomState | None = field(default=None, init=False)
    _places: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._places = places(self.module)

    def __call__(self) -> Tensor:
        """The gradient at the weights as they are, and the detached loss.

        Raises:
            RuntimeError: The first gradient of a step is asked for elsewhere than Lightning has accumulated it.
        """
        if self._start is not None:
            return self._repeat(self._start)
        self._start = RandomState.capture(self.module)
        if self.micro_batches and (asked_share() < 1 or self._places != places(self.module)):
            raise RuntimeError(
                "With accumulate_grad_batches above 1, Lightning has taken the gradients of all micro-batches but "
                "the last at the weights themselves, and this flatness asks for the first gradient of a step "
                "elsewhere, or with a part of the batch. Use SAM or another that begins at the weights with the "
                "whole batch, or accumulate_grad_batches=1."
            )
        self.first()
        return self._total(self.losses)

    @torch.enable_grad()
    def _repeat(self, start: RandomState) -> Tensor:
        # Whoever replays noise has put us back to where the last micro-batch began; each has its own beginning.
        same_noise = RandomState.capture(self.module).equals(start)
        losses = list[Tensor | None]()
        with silent(self.module), standing_in(self.module, training_step=self.training_step):
            self.zero_grad()
            for micro_batch in self.micro_batches:
                if same_noise:
                    micro_batch.noise.restore()
                loss = loss_of(self.trainer.strategy.training_step(*micro_batch.args, **micro_batch.kwargs))
                if loss is None:
                    continue
                part = loss / self.trainer.accumulate_grad_batches
                self.trainer.strategy.backward(part, self.trainer.optimizers[0])
                losses.append(part.detach())
        return self._total(losses)

    def _total(self, losses: list[Tensor | None]) -> Tensor:
        parts = [loss for loss in losses if loss is not None]
        return torch.stack(parts).sum() if parts else torch.zeros((), device=self.module.device)


def loss_of(output: Any) -> Tensor | None:
    """What `training_step` has returned, without what is not the loss."""
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss


def places(module: nn.Module) -> list[tuple[int, int]]:
    """Where the parameters are in memory, and how often they were written to: another list if weights have moved."""
    return [(param.data_ptr(), param._version) for param in module.parameters()]


@contextmanager
def standing_in(module: nn.Module, **methods: Callable[..., Any]) -> Iterator[None]:
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
def silent(module: LightningModule) -> Iterator[None]:
    """Inside, `self.log` and `self.log_dict` do nothing, and metrics are copies that are thrown away."""
    owners = list(_metrics(module))
    try:
        for owner, name, child in owners:
            owner._modules[name] = child.clone()
        with standing_in(module, log=_nothing, log_dict=_nothing):
            yield
    finally:
        for owner, name, child in owners:
            owner._modules[name] = child


def _metrics(owner: nn.Module) -> Iterator[tuple[nn.Module, str, Metric | MetricCollection]]:
    for name, child in owner._modules.items():
        if isinstance(child, Metric | MetricCollection):
            yield owner, name, child
        elif child is not None:
            yield from _metrics(child)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
