"""Gradients made of two: the plain one, at the weights, and the flat one, at the perturbed weights.

    g = gradient at w
    f = gradient at w + e
    .grad = combine(g, f)

The functions below are in place on f, which is `.grad` itself where that is possible. With vectorized networks every
product and norm is that of each network.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.gradients import dense_gradient, replace_gradient
from flatbayes.core.norms import broadcast_per_network, global_inner_product, global_norm
from flatbayes.core.tensor_lists import clone_tensors, group_tensors
from flatbayes.core.traversal import trainable_by_name
from flatbayes.core.weights import promoted_dtype
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.flatness import AscentFlatness, require_radius
from flatbayes.flatness.sam import euclidean_perturbation

CombineFn = Callable[[Mapping[str, Tensor], Sequence[Tensor]], None]
"""(plain gradients by name of the parameter, flat gradients) -> None; it changes the flat ones in place."""


def combine_gradients(
    flatness: AscentFlatness,
    combine_fn: CombineFn,
    closure: Closure,
    model: nn.Module,
    progress: TrainingProgress | None,
) -> Closure:
    """Make a closure whose gradient is a function of the plain gradient and of the gradient of SAM.

    `combine_fn` computes the gradient of the step. It is not called if nothing is perturbed.
    """
    rho = require_radius(flatness)

    def combined_closure() -> Tensor:
        plain_grads: dict[str, Tensor] = {}

        def record_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            plain_grads.update(zip(weights, clone_tensors(grads), strict=True))
            return euclidean_perturbation(grads, rho)

        loss = flatness.make_closure(record_perturbation, closure, model, progress)()
        if plain_grads:
            if progress is not None:
                progress.memory.release()  # the combination may allocate copies of the gradient
            params = trainable_by_name(model)
            flat_grads = [dense_gradient(params[name]) for name in plain_grads]
            with torch.no_grad():
                combine_fn(plain_grads, flat_grads)
            for name, grad in zip(plain_grads, flat_grads, strict=True):
                replace_gradient(params[name], grad)
        return loss

    return combined_closure


def extrapolate_gradient(grads: Sequence[Tensor], flat_grads: Sequence[Tensor], weight: float) -> None:
    """F <- g + weight (f - g), in place; exactly f for a weight of 1, and exactly g where both are equal.

    Here g are `grads` and f `flat_grads`.
    """
    torch._foreach_lerp_(list(flat_grads), list(grads), 1 - weight)


def match_norm(grads: Sequence[Tensor], flat_grads: Sequence[Tensor]) -> None:
    """F <- ||g|| f / ||f||, in place, norms over all tensors jointly; zero for a zero f.

    Here g are `grads` and f `flat_grads`.
    """
    flat_norm = global_norm(flat_grads)
    ratio = torch.where(flat_norm == 0, 0.0, global_norm(grads) / flat_norm)
    torch._foreach_mul_(list(flat_grads), spread_factor(ratio, flat_grads))


def subtract_orthogonal_part(grads: Sequence[Tensor], flat_grads: Sequence[Tensor], alpha: float) -> None:
    """F <- f - alpha (g - (g·f / f·f) f), in place, products over all tensors jointly; exactly f where g equals f.

    Here g are `grads`, which are overwritten, and f `flat_grads`.
    """
    length = global_inner_product(flat_grads, flat_grads)
    along = torch.where(length == 0, 0.0, global_inner_product(grads, flat_grads) / length)
    for group in group_tensors(flat_grads):
        plain, flat = [grads[k] for k in group], [flat_grads[k] for k in group]
        torch._foreach_sub_(plain, torch._foreach_mul(flat, spread_factor(along, flat)))
        torch._foreach_sub_(flat, plain, alpha=alpha)


def spread_factor(factor: Tensor, tensors: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """The second argument of `torch._foreach_mul` that multiplies all tensors by one factor."""
    if factor.ndim:
        return [broadcast_per_network(factor, tensor).to(tensor.dtype) for tensor in tensors]
    return factor.to(tensors[0].device, promoted_dtype(tensors))
