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

from flatbayes.core import Closure, Course
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Offset, asked_at, check_radius
from flatbayes.flatness.flatness import Flatness, needed
from flatbayes.flatness.sam import euclidean_offset

KIND = "looksam"


@dataclass(frozen=True)
class LookSAM(Flatness):
    """SAM in some steps, and in those between the plain gradient turned in the direction that SAM last turned it.

    Attributes:
        rho: Radius of the ball, the norm taken over all trainable weights together.
        every: Steps from one full SAM to the next.
        alpha: Length of what is added in between, relative to that of the plain gradient.
        fresh_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    rho: float = 0.05
    every: int = 5
    alpha: float = 0.7
    fresh_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}.")
        if not 0 <= self.alpha < inf:
            raise ValueError(f"alpha is a relative length: it must be finite and at least 0, got {self.alpha}.")

    @property
    def gradients(self) -> float:
        """One, and a second one in the steps that run SAM."""
        return 1 + 1 / self.every

    @property
    def one_loss_from(self) -> float:
        """Never, since what is added belongs to earlier weights and another batch; unless every step runs SAM."""
        return 0.0 if self.every == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The closure that runs SAM if it is time to, or nothing is kept yet, and otherwise turns the gradient.

        Raises:
            ValueError: No course is given.
        """
        known = needed(course, self)

        def flat_closure() -> Tensor:
            params = {name: p for name, p in model.named_parameters() if p.requires_grad}
            directions = known.recall(KIND, params)
            if known.step % self.every == 0 or not directions:
                return self._look(closure, model, known)
            loss = closure()
            grads = {name: p.grad for name, p in params.items() if p.grad is not None}
            turn(list(grads.values()), [directions.get(n, torch.zeros_like(g)) for n, g in grads.items()], self.alpha)
            return loss

        return flat_closure

    def _look(self, closure: Closure, model: nn.Module, course: Course) -> Tensor:
        seen: dict[str, Tensor] = {}

        def offset(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Offset:
            offset = euclidean_offset(grads, self.rho)
            if offset.is_finite:
                seen.update((name, g.clone()) for name, g in zip(weights, grads, strict=True))
            return offset

        loss = asked_at(offset, closure, model, fresh_noise=self.fresh_noise)()
        if seen:
            now = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            flat = [now.get(name, torch.zeros_like(g)) for name, g in seen.items()]
            course.remember(KIND, dict(zip(seen, across(list(seen.values()), flat), strict=True)))
        return loss


def across(grads: Sequence[Tensor], flat_grads: Sequence[Tensor]) -> list[Tensor]:
    """The part of the flat gradient that is orthogonal to the plain one, at length 1; zero where there is none.

    g_v = g_flat - (g_flat·g / g·g) g, then g_v / ||g_v||, products and norms over all tensors jointly (Liu et al.,
    Algorithm 1). In at least float32, and exactly zero where the two gradients are equal.
    """
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    flat = [f.to(g.dtype) for f, g in zip(flat_grads, wide, strict=True)]
    length = _dot(wide, wide)
    along = torch.where(length > 0, _dot(flat, wide) / length, 0.0)
    rest = [f - along * g for f, g in zip(flat, wide, strict=True)]
    norm = global_norm(rest)
    scale = torch.where(norm.isfinite() & (norm > 0), 1 / norm, 0.0)
    return [torch.where(scale > 0, r * scale, 0.0).to(g.dtype) for r, g in zip(rest, grads, strict=True)]


def turn(grads: Sequence[Tensor], directions: Sequence[Tensor], alpha: float) -> None:
    """Add alpha ||g|| times the direction to g, in place, norms over all tensors jointly."""
    if grads:
        length = (alpha * global_norm(grads)).to(grads[0].dtype)
        torch._foreach_add_(list(grads), torch._foreach_mul(list(directions), length))


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
