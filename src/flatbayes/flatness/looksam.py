"""LookSAM: SAM in every `period`-th step, whose change of the gradient's direction is reused in the steps between.

Liu et al., CVPR 2022, Algorithm 1. The SAM gradient has a component along the plain gradient g and an orthogonal one;
the second leads to flat regions and changes slowly:

    in every period-th step:  .grad = g_flat, the gradient of SAM
                              v = (g_flat - (g_flat·g / g·g) g), normalised to length 1, is stored
    in the others:            .grad = g + alpha * ||g|| * v

    flat, progress = LookSAM(rho=0.05, period=5), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.gradients import check_trainable, compute_some_gradients, dense_gradient, replace_gradient
from flatbayes.core.norms import broadcast_per_network, global_inner_product, global_norm
from flatbayes.core.parameter_selection import select_parameters
from flatbayes.core.tensor_lists import fill_with_zeros, zero_tensors
from flatbayes.core.traversal import trainable_by_name
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_progress, require_radius
from flatbayes.flatness.gradient_combination import combine_gradients, spread_factor

STATE_KIND = "looksam"


@dataclass(frozen=True)
class LookSAM(AscentFlatness):
    """SAM in some steps, whose turn of the gradient the others reuse.

    Use it to save most second gradients, after a check of its stability on your data.

    Attributes:
        rho: Radius of the ball, in the norm over all trainable weights together.
        period: Number of steps from one SAM step to the next.
        alpha: Length of the added direction, relative to that of the plain gradient.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = LookSAM(rho=0.1, period=2)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        1.5
    """

    rho: Radius = 0.05
    period: int = 5
    alpha: float = 0.7
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """Infinity, since the stored direction belongs to earlier weights; 0 if all steps run SAM."""
        return 0.0 if self.period == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure that runs SAM, if it is due or no direction is stored, or else adds the stored direction.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress = require_progress(progress, self)
        require_radius(self)

        def flat_closure() -> Tensor:
            params = trainable_by_name(model)
            check_trainable(params, model)
            directions = progress.load_state(STATE_KIND, params)
            if progress.step % self.period == 0 or not directions:
                return self._run_sam_step(closure, model, progress)
            fresh = compute_some_gradients(closure, model, progress, params)
            grads = {name: dense_gradient(param) for name, param in fresh.params.items()}
            fixed = select_parameters(model, list(self.nuisance), "nuisance") if self.nuisance else {}
            turned = {name: grad for name, grad in grads.items() if name not in fixed}
            add_direction(list(turned.values()), fill_with_zeros(directions, turned), self.alpha)
            for name, param in fresh.params.items():
                replace_gradient(param, grads[name])
            return fresh.loss

        return flat_closure

    def _run_sam_step(self, closure: Closure, model: nn.Module, progress: TrainingProgress) -> Tensor:
        def store_direction(plain: Mapping[str, Tensor], flat: Sequence[Tensor]) -> None:
            previous = fill_with_zeros(progress.load_state(STATE_KIND, plain), plain)
            directions = orthogonal_direction(list(plain.values()), flat, previous)
            progress.store_state(STATE_KIND, dict(zip(plain, directions, strict=True)))

        return combine_gradients(self, store_direction, closure, model, progress)()


def orthogonal_direction(
    grads: Sequence[Tensor], flat_grads: Sequence[Tensor], previous: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The component of the flat gradient that is orthogonal to the plain one, at length 1; zero if there is none.

    g_v = g_flat - (g_flat·g / g·g) g, then g_v / ||g_v||, products and norms over all tensors jointly (Liu et al.,
    Algorithm 1). Computed in at least float32, and exactly zero where the two gradients are equal. The
    direction stays `previous`, or zero, if a gradient is not finite.
    """
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    flat = [f.to(g.dtype) for f, g in zip(flat_grads, wide, strict=True)]
    length = global_inner_product(wide, wide)
    along = torch.where(length > 0, global_inner_product(flat, wide) / length, 0.0)
    rest = list(torch._foreach_mul(wide, spread_factor(along, wide)))
    torch._foreach_neg_(rest)
    torch._foreach_add_(rest, flat)
    norm = global_norm(rest)
    scale = torch.where(norm.isfinite() & (norm > 0), 1 / norm, 0.0)
    previous = zero_tensors(rest) if previous is None else previous
    is_kept = torch.where(norm.isfinite(), 0.0, 1.0)
    kept = torch._foreach_mul(list(previous), spread_factor(is_kept, previous))
    torch._foreach_mul_(rest, spread_factor(scale, rest))
    return [
        torch.where(broadcast_per_network(scale > 0, r), r, k).to(k.dtype) for r, k in zip(rest, kept, strict=True)
    ]


def add_direction(grads: Sequence[Tensor], directions: Sequence[Tensor], alpha: float) -> None:
    """Add alpha ||g|| times directions, together of length 1, to g, in place, norms over all tensors jointly."""
    if grads:
        length = alpha * global_norm(grads)
        torch._foreach_add_(list(grads), torch._foreach_mul(list(directions), spread_factor(length, grads)))
