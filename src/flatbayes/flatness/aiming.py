"""An ascent that is aimed with less than everything: with a share of the batch, or with some of the parameters."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import preserve_buffers
from flatbayes.core.context import batch_fraction
from flatbayes.core.parameter_selection import ParameterSelection, only_requires_grad, select_parameters
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.weights import perturb
from flatbayes.flatness.ascent import Perturbation, PerturbationFn, gradient_at_perturbation


def gradient_at_restricted_perturbation(
    perturbation_fn: PerturbationFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int,
    resample_noise: bool,
    ascent_batch_fraction: float,
    params: ParameterSelection,
) -> Closure:
    """`gradient_at_perturbation`, the passes before the final one being less than whole where that is asked for.

    Args:
        perturbation_fn: The displacement for a gradient, always from the undisplaced weights.
        closure: The plain closure.
        model: The module whose trainable parameters are displaced.
        ascent_steps: Displacements before the final gradient.
        resample_noise: Let the later passes draw random numbers of their own.
        ascent_batch_fraction: Share of the batch that aims.
        params: The parameters that are displaced, and in whose space the offset is computed.
    """
    if params == "all":
        if ascent_batch_fraction == 1:
            return gradient_at_perturbation(
                perturbation_fn, closure, model, ascent_steps=ascent_steps, resample_noise=resample_noise
            )
        return lambda: _run_partial_ascent(
            perturbation_fn, closure, closure, model, ascent_batch_fraction, ascent_steps, resample_noise
        )

    def flat_closure() -> Tensor:
        chosen = select_parameters(model, params, "params")
        offset_among = _restrict_perturbation(chosen, perturbation_fn)

        def ascent_closure() -> Tensor:
            with only_requires_grad(model, chosen):
                return closure()

        if ascent_batch_fraction < 1:
            return _run_partial_ascent(
                offset_among, ascent_closure, closure, model, ascent_batch_fraction, ascent_steps, resample_noise
            )
        passes = iter([ascent_closure] * ascent_steps)
        whole = gradient_at_perturbation(
            offset_among,
            lambda: next(passes, closure)(),
            model,
            ascent_steps=ascent_steps,
            resample_noise=resample_noise,
        )
        return whole()

    return flat_closure


def check_ascent_batch_fraction(ascent_batch_fraction: float) -> None:
    """Refuse a share that is none.

    Raises:
        ValueError: `part` is not above 0 and at most 1.
    """
    if not 0 < ascent_batch_fraction <= 1:
        raise ValueError(
            f"ascent_batch_fraction is a share of the batch: it must be above 0 and at most 1, got {ascent_batch_fraction}."
        )


def _run_partial_ascent(
    perturbation_fn: PerturbationFn,
    ascent_closure: Closure,
    closure: Closure,
    model: nn.Module,
    ascent_batch_fraction: float,
    ascent_steps: int,
    resample_noise: bool,
) -> Tensor:
    # Only the final pass sees the whole batch, so that is the one that moves buffers, uses up random numbers and
    # whose loss is returned. The passes that aim start from the same random state and leave no trace.
    weights: dict[str, nn.Parameter] = {}
    offset: Perturbation | None = None
    for _ in range(ascent_steps):
        unused = nullcontext() if resample_noise else preserve_rng(model)
        with (
            preserve_buffers(model),
            unused,
            batch_fraction(ascent_batch_fraction),
            _apply_perturbation(weights, offset),
        ):
            ascent_closure()
        weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
        offset = perturbation_fn(weights, [_grad_or_zeros(p) for p in weights.values()]) if weights else None
        if offset is None or not offset.is_finite:
            return closure()
    with _apply_perturbation(weights, offset):
        return closure()


def _apply_perturbation(
    weights: Mapping[str, Tensor], perturbation: Perturbation | None
) -> AbstractContextManager[None]:
    return (
        nullcontext()
        if perturbation is None
        else perturb(list(weights.values()), perturbation.directions, perturbation.scale)
    )


def _restrict_perturbation(selection: Mapping[str, Tensor], perturbation_fn: PerturbationFn) -> PerturbationFn:
    # The others may have gradients too, of zero, if the closure does not set them to None.
    def compute_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
        found = {name: g for name, g in zip(weights, grads, strict=True) if name in selection}
        if not found:
            return Perturbation([torch.zeros_like(g) for g in grads], torch.zeros(()), 0.0)  # nowhere to go
        inner = perturbation_fn({name: weights[name] for name in found}, list(found.values()))
        moved = dict(zip(found, inner.directions, strict=True))
        directions = [moved.get(name, torch.zeros_like(g)) for name, g in zip(weights, grads, strict=True)]
        return replace(inner, directions=directions)

    return compute_perturbation


def _grad_or_zeros(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad
