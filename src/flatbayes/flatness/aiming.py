"""An ascent that is aimed with less than everything: with a share of the batch, or with some of the parameters."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import frozen
from flatbayes.core.randomness import unmoved
from flatbayes.core.selection import Selection, alone, selected
from flatbayes.core.share import asking_for
from flatbayes.core.weights import displaced
from flatbayes.flatness.ascent import Offset, OffsetFn, asked_at


def aimed(
    offset_fn: OffsetFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int,
    fresh_noise: bool,
    part: float,
    params: Selection,
) -> Closure:
    """`asked_at`, the passes before the final one being less than whole where that is asked for.

    Args:
        offset_fn: The displacement for a gradient, always from the undisplaced weights.
        closure: The plain closure.
        model: The module whose trainable parameters are displaced.
        ascent_steps: Displacements before the final gradient.
        fresh_noise: Let the later passes draw random numbers of their own.
        part: Share of the batch that aims.
        params: The parameters that are displaced, and in whose space the offset is computed.
    """
    if params == "all":
        if part == 1:
            return asked_at(offset_fn, closure, model, ascent_steps=ascent_steps, fresh_noise=fresh_noise)
        return lambda: _asked_by_part(offset_fn, closure, closure, model, part, ascent_steps, fresh_noise)

    def flat_closure() -> Tensor:
        chosen = selected(model, params, "params")
        offset_among = _among(chosen, offset_fn)

        def aim() -> Tensor:
            with alone(model, chosen):
                return closure()

        if part < 1:
            return _asked_by_part(offset_among, aim, closure, model, part, ascent_steps, fresh_noise)
        passes = iter([aim] * ascent_steps)
        whole = asked_at(
            offset_among,
            lambda: next(passes, closure)(),
            model,
            ascent_steps=ascent_steps,
            fresh_noise=fresh_noise,
        )
        return whole()

    return flat_closure


def check_part(part: float) -> None:
    """Refuse a share that is none.

    Raises:
        ValueError: `part` is not above 0 and at most 1.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part is a share of the batch: it must be above 0 and at most 1, got {part}.")


def _asked_by_part(
    offset_fn: OffsetFn,
    aim: Closure,
    closure: Closure,
    model: nn.Module,
    part: float,
    ascent_steps: int,
    fresh_noise: bool,
) -> Tensor:
    # Only the final pass sees the whole batch, so that is the one that moves buffers, uses up random numbers and
    # whose loss is returned. The passes that aim start from the same random state and leave no trace.
    weights: dict[str, nn.Parameter] = {}
    offset: Offset | None = None
    for _ in range(ascent_steps):
        unused = nullcontext() if fresh_noise else unmoved(model)
        with frozen(model), unused, asking_for(part), _displaced(weights, offset):
            aim()
        weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
        offset = offset_fn(weights, [_grad(p) for p in weights.values()]) if weights else None
        if offset is None or not offset.is_finite:
            return closure()
    with _displaced(weights, offset):
        return closure()


def _displaced(weights: Mapping[str, Tensor], offset: Offset | None) -> AbstractContextManager[None]:
    return nullcontext() if offset is None else displaced(list(weights.values()), offset.directions, offset.scale)


def _among(chosen: Mapping[str, Tensor], offset_fn: OffsetFn) -> OffsetFn:
    # The others may have gradients too, of zero, if the closure does not set them to None.
    def offset(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Offset:
        found = {name: g for name, g in zip(weights, grads, strict=True) if name in chosen}
        if not found:
            return Offset([torch.zeros_like(g) for g in grads], torch.zeros(()), 0.0)  # nowhere to go
        inner = offset_fn({name: weights[name] for name in found}, list(found.values()))
        moved = dict(zip(found, inner.directions, strict=True))
        directions = [moved.get(name, torch.zeros_like(g)) for name, g in zip(weights, grads, strict=True)]
        return replace(inner, directions=directions)

    return offset


def _grad(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad
