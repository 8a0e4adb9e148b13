"""Sums and averages of the gradients of earlier steps, which a flatness keeps in the progress of training.

A gradient that is not finite changes none of them: the state is then that before the step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flatbayes.core import TrainingProgress
from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.core.tensor_lists import flatten, group_tensors, unflatten, zero_tensors


def update_average(
    progress: TrainingProgress, kind: str, weights: Mapping[str, Tensor], grads: Sequence[Tensor], decay: float
) -> list[Tensor]:
    """Update averages m <- decay m + (1 - decay) g, kept under a name, and return them; the first is the gradient."""
    averages, is_finite = progress.load_state(kind, weights), global_norm(grads).isfinite()
    gradients = dict(zip(weights, grads, strict=True))
    missing = [name for name in gradients if name not in averages]
    present = [name for name in gradients if name in averages]
    accumulate_gradients(
        [averages[name] for name in present], [gradients[name] for name in present], decay, 1 - decay, is_finite
    )
    averages |= zip(missing, zero_tensors([gradients[name] for name in missing]), strict=True)
    accumulate_gradients(
        [averages[name] for name in missing], [gradients[name] for name in missing], 0.0, 1.0, is_finite
    )
    progress.store_state(kind, averages)
    return [averages[name] for name in weights]


def accumulate_gradients(
    sums: Sequence[Tensor],
    grads: Sequence[Tensor],
    decay: float,
    weight: float = 1.0,
    is_finite: Tensor | None = None,
) -> None:
    """Update sums v <- decay v + weight g in place, and leave them unchanged if the gradient is not finite.

    By default these tensors decide whether the gradient is finite; `is_finite` says it of each vectorized network.
    """
    if not grads:
        return
    is_finite = global_norm(grads).isfinite() if is_finite is None else is_finite
    if not is_finite.ndim and any_on_accelerator(grads):  # reading it would wait
        _accumulate_if(is_finite, sums, grads, decay, weight)
    elif is_finite.ndim:  # of each network
        conditions = [broadcast_per_network(is_finite, g) for g in grads]
        updated = torch._foreach_add(torch._foreach_mul(list(sums), decay), list(grads), alpha=weight)
        pairs = zip(conditions, updated, sums, strict=True)
        torch._foreach_copy_(list(sums), [torch.where(condition, new, old) for condition, new, old in pairs])
    elif bool(is_finite):
        torch._foreach_mul_(list(sums), decay)
        torch._foreach_add_(list(sums), list(grads), alpha=weight)


def _accumulate_if(
    condition: Tensor, sums: Sequence[Tensor], grads: Sequence[Tensor], decay: float, weight: float
) -> None:
    """`accumulate_gradients` without reading the condition, in few kernels."""
    for group in group_tensors(grads):
        members, targets = [grads[k] for k in group], [sums[k] for k in group]
        accepted = flatten(members).masked_fill_(condition.logical_not(), 0.0)
        torch._foreach_mul_(targets, members[0].new_ones(()).masked_fill_(condition, decay))
        torch._foreach_add_(targets, unflatten(accepted, members), alpha=weight)
