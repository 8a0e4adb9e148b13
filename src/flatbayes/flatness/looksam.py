"""LookSAM (Liu et al., CVPR 2022): what SAM adds to the gradient changes slowly, so it is computed now and then.

The gradient at the worst point has a part along the plain gradient and a part across it, and it is the latter that
leads to flat regions. Every `every` steps SAM is run in full and the direction of that part is kept; in between it is
added to the plain gradient, at a fixed proportion of its length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Perturbation, check_radius, gradient_at_perturbation
from flatbayes.flatness.flatness import Flatness, require_progress
from flatbayes.flatness.sam import euclidean_perturbation

STATE_NAMESPACE = "looksam"


@dataclass(frozen=True)
class LookSAM(Flatness):
    """SAM in some steps, and in those between the plain gradient turned in the direction that SAM last turned it.

    Attributes:
        rho: Radius of the ball, the norm taken over all trainable weights together.
        period: Steps from one full SAM to the next.
        alpha: Length of what is added in between, relative to that of the plain gradient.
        resample_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    rho: float = 0.05
    period: int = 5
    alpha: float = 0.7
    resample_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}.")
        if not 0 <= self.alpha < inf:
            raise ValueError(f"alpha is a relative length: it must be finite and at least 0, got {self.alpha}.")

    @property
    def gradients_per_step(self) -> float:
        """One, and a second one in the steps that run SAM."""
        return 1 + 1 / self.period

    @property
    def stationary_after(self) -> float:
        """Never, since what is added belongs to earlier weights and another batch; unless every step runs SAM."""
        return 0.0 if self.period == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure that runs SAM if it is time to, or nothing is kept yet, and otherwise turns the gradient.

        Raises:
            ValueError: No course is given.
        """
        known = require_progress(progress, self)

        def flat_closure() -> Tensor:
            params = {name: p for name, p in model.named_parameters() if p.requires_grad}
            directions = known.load_state(STATE_NAMESPACE, params)
            if known.step % self.period == 0 or not directions:
                return self._run_sam_step(closure, model, known)
            loss = closure()
            grads = {name: p.grad for name, p in params.items() if p.grad is not None}
            add_direction(
                list(grads.values()), [directions.get(n, torch.zeros_like(g)) for n, g in grads.items()], self.alpha
            )
            return loss

        return flat_closure

    def _run_sam_step(self, closure: Closure, model: nn.Module, progress: TrainingProgress) -> Tensor:
        seen: dict[str, Tensor] = {}

        def record_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            offset = euclidean_perturbation(grads, self.rho)
            if offset.is_finite:
                seen.update((name, g.clone()) for name, g in zip(weights, grads, strict=True))
            return offset

        loss = gradient_at_perturbation(record_perturbation, closure, model, resample_noise=self.resample_noise)()
        if seen:
            now = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            flat = [now.get(name, torch.zeros_like(g)) for name, g in seen.items()]
            progress.store_state(
                STATE_NAMESPACE, dict(zip(seen, orthogonal_direction(list(seen.values()), flat), strict=True))
            )
        return loss


def orthogonal_direction(grads: Sequence[Tensor], flat_grads: Sequence[Tensor]) -> list[Tensor]:
    """The part of the flat gradient that is orthogonal to the plain one, at length 1; zero where there is none.

    g_v = g_flat - (g_flat·g / g·g) g, then g_v / ||g_v||, products and norms over all tensors jointly (Liu et al.,
    Algorithm 1). In at least float32, and exactly zero where the two gradients are equal.
    """
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    flat = [f.to(g.dtype) for f, g in zip(flat_grads, wide, strict=True)]
    length = _inner_product(wide, wide)
    along = torch.where(length > 0, _inner_product(flat, wide) / length, 0.0)
    rest = [f - along * g for f, g in zip(flat, wide, strict=True)]
    norm = global_norm(rest)
    scale = torch.where(norm.isfinite() & (norm > 0), 1 / norm, 0.0)
    return [torch.where(scale > 0, r * scale, 0.0).to(g.dtype) for r, g in zip(rest, grads, strict=True)]


def add_direction(grads: Sequence[Tensor], directions: Sequence[Tensor], alpha: float) -> None:
    """Add alpha ||g|| times the direction to g, in place, norms over all tensors jointly."""
    if grads:
        length = (alpha * global_norm(grads)).to(grads[0].dtype)
        torch._foreach_add_(list(grads), torch._foreach_mul(list(directions), length))


def _inner_product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
