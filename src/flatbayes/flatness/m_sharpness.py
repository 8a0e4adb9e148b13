"""m-sharpness: another flatness on each of several sub-batches, whose gradients are averaged.

Foret et al., ICLR 2021, section 4.1. The worst point is that of a sub-batch, not of the batch, which is the objective
of SAM on several devices, each with its share of the batch; small sub-batches often generalise better.

    for each sub-batch k of the batch:
        f_k = flat gradient of the sub-batch
    .grad = mean of f_k, weighted by the number of examples

    flat = MSharpness(SAM(rho=0.05), num_sub_batches=4)

    def closure():
        x, y = subset_batch(inputs, targets)   # flatbayes.core.subset_batch: the current sub-batch
        ...

    loss = flat(closure, model)()

Buffers such as BatchNorm statistics, and random numbers such as dropout masks, advance from sub-batch to sub-batch,
as with gradient accumulation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.components import resolve_component
from flatbayes.core.context import SubBatch, sub_batch
from flatbayes.core.gradients import check_trainable, compute_some_gradients, dense_gradient, replace_gradient
from flatbayes.core.traversal import trainable_by_name
from flatbayes.flatness.flatness import Flatness, FlatnessWrapper
from flatbayes.flatness.sam import SAM


@dataclass(frozen=True)
class MSharpness(FlatnessWrapper):
    """Another flatness on every sub-batch of the batch, averaged.

    Use it to have the perturbation of small batches in a large batch.

    The closure passes its batch through `flatbayes.core.subset_batch`, as that of `fit` does.

    Attributes:
        flatness: The flatness of each sub-batch.
        num_sub_batches: Number of sub-batches of a batch; fewer if they had less than two examples each.

    Examples:
        >>> flatness = MSharpness(SAM(rho=0.1), num_sub_batches=4)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> flatness.gradients_per_step  # each on a sub-batch: as expensive as two of the batch
        2.0
    """

    flatness: Flatness = SAM()
    num_sub_batches: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))
        if self.num_sub_batches < 1:
            raise ValueError(f"num_sub_batches must be at least 1, got {self.num_sub_batches}.")

    @property
    def gradients_per_step(self) -> float:
        """As for the inner flatness: those of all sub-batches cost as much as one of the batch."""
        return self.flatness.gradients_per_step

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is the mean of those of the sub-batches.

        Raises:
            ValueError: When the closure is called, and it does not pass its batch through `subset_batch`.
        """
        inner = self.flatness(closure, model, None if progress is None else progress.scope("flatness"))

        def flat_closure() -> Tensor:
            params = trainable_by_name(model)
            check_trainable(params, model)
            sums: dict[str, Tensor] = {}
            losses = list[Tensor]()
            parts = [SubBatch(0, self.num_sub_batches)]
            for part in parts:  # the first one reports how many there are
                with sub_batch(part):
                    fresh = compute_some_gradients(inner, model, progress, params)
                if part.num_examples == 0:
                    raise ValueError(_format_whole_batch(model))
                if part.num_sub_batches == 1:
                    return fresh.loss
                losses.append(fresh.loss * part.weight)
                add_gradients(sums, fresh.params, part.weight)
                if part.index + 1 < part.num_sub_batches:
                    parts.append(SubBatch(part.index + 1, self.num_sub_batches))
                    for param in fresh.params.values():
                        param.grad = None  # the closure may not zero it
            for name, grad in sums.items():
                replace_gradient(params[name], grad)
            return torch.stack(losses).sum(0)

        return flat_closure


def add_gradients(sums: dict[str, Tensor], params: Mapping[str, nn.Parameter], weight: float) -> None:
    """Add weight times the gradient to the sum of each parameter, in place; new sums are in new memory."""
    grads = {name: dense_gradient(param) for name, param in params.items()}
    new = [name for name in grads if name not in sums]
    old = [name for name in grads if name in sums]
    if old:
        torch._foreach_add_([sums[name] for name in old], [grads[name] for name in old], alpha=weight)
    if new:
        sums.update(zip(new, torch._foreach_mul([grads[name] for name in new], weight), strict=True))


def _format_whole_batch(model: nn.Module) -> str:
    return (
        f"MSharpness takes the gradients of sub-batches, and the closure of {type(model).__name__} computes that of "
        "its whole batch. Write `inputs, targets = subset_batch(inputs, targets)` in it "
        "(flatbayes.core.subset_batch). The loops of Lightning and transformers compute whole batches: use the inner "
        "flatness there, or train with fit."
    )
