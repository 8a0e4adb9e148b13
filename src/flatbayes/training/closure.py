"""Loss closure of a batch, with micro-batches and gradient clipping."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatbayes.core import Closure, subset_batch
from flatbayes.core.gradients import densify_gradients
from flatbayes.core.input_trees import ModelInputs, slice_examples
from flatbayes.training.config import TrainingConfig
from flatbayes.training.engine import Engine
from flatbayes.training.run import TrainingRun


@dataclass(frozen=True, eq=False)
class BatchClosure:
    """Computes the loss of a batch, or of the fraction that `batch_fraction` sets, and its gradient."""

    run: TrainingRun
    engine: Engine
    inputs: ModelInputs
    targets: Tensor

    @property
    def num_examples(self) -> int | Tensor:
        """Number of labelled examples in the next call."""
        return self._count_labelled(subset_batch(self.targets)[0])

    def __call__(self) -> Tensor:
        """The loss; gradients are those of the parameters afterwards."""
        run, engine = self.run, self.engine
        inputs, targets = subset_batch(self.inputs, self.targets)
        num_examples = len(targets)
        run.status.num_gradients += run.num_networks * (num_examples / len(self.targets))
        num_micro_batches = count_micro_batches(
            num_examples, len(self.targets), run.config.optimization.accumulation_steps
        )
        engine.zero_grad()
        total: Tensor | float = 0.0
        for x, y in _split_batch(inputs, targets, num_micro_batches):
            loss = run.loss_fn(engine.network(x), y)
            if num_micro_batches > 1:
                loss = loss * (self._count_labelled(y) / max_one(self._count_labelled(targets)))
            engine.backward(loss.sum() if loss.ndim else loss)  # of the sum, each network gets its own gradient
            total = total + loss.detach()
        if not isinstance(engine.optimizer, torch.optim.SparseAdam):
            densify_gradients(engine.params)  # momentum, priors and weight decay concern every row
        return total  # type: ignore[return-value]  # a tensor: there is at least one micro-batch

    def _count_labelled(self, targets: Tensor) -> int | Tensor:
        """Number of targets, as a tensor if some may be missing: reading it would wait for the device.

        Vectorized networks, whose targets are [batch, networks, ...], have a number each.
        """
        is_labelled = self.run.find_labelled(targets)
        if is_labelled is None:
            return len(targets)
        return is_labelled.sum() if self.run.num_networks == 1 else is_labelled.transpose(0, 1).flatten(1).sum(1)


def count_micro_batches(num_examples: int, batch_size: int, accumulation_steps: int) -> int:
    """Number of micro-batches of the first examples of a batch, of about the size of those of the whole batch.

    A micro-batch of a fraction has one example only if those of the whole batch have: batch normalization cannot be
    trained on one.

    Examples:
        >>> [count_micro_batches(count, 8, 4) for count in (2, 3, 4, 8)]
        [1, 1, 2, 4]
    """
    if num_examples == batch_size:
        return min(accumulation_steps, num_examples)
    size = math.ceil(batch_size / accumulation_steps)
    return max(1, min(math.ceil(num_examples / size), num_examples // min(2, size)))


def max_one(count: int | Tensor) -> int | Tensor:
    """A count as a divisor: at least one."""
    return max(count, 1) if isinstance(count, int) else count.clamp_min(1)


def clip_closure(closure: Closure, engine: Engine, config: TrainingConfig) -> Closure:
    """The closure followed by gradient clipping, if the configuration has any."""
    clip_norm = config.optimization.clip_norm
    if clip_norm is None or clip_norm == "auto":
        if config.precision.mode != "16-mixed":
            return closure
        clip_norm = math.inf  # clipping removes the loss scale

    def clipped_closure() -> Tensor:
        loss = closure()
        engine.clip_gradients(clip_norm)
        return loss

    return clipped_closure


def _split_batch(inputs: ModelInputs, targets: Tensor, num_micro_batches: int) -> Iterable[tuple[Any, Tensor]]:
    if num_micro_batches == 1:
        return [(inputs, targets)]
    if isinstance(inputs, Tensor):
        return zip(inputs.tensor_split(num_micro_batches), targets.tensor_split(num_micro_batches), strict=True)
    rows = torch.arange(len(targets), device=targets.device).tensor_split(num_micro_batches)
    return [(slice_examples(inputs, index), targets[index]) for index in rows]
