"""Gaussian smoothing: one gradient, at randomly displaced weights, whose expectation is that of a smooth loss.

With xi ~ N(0, I), the gradient at w + std xi estimates without bias that of E L(w + std xi), which is
L(w) + std² / 2 tr(Hessian) to second order. So flatness is sought on average over directions, not in the worst one,
and the loss that is followed is exact. With `SGLD` it is flatness-aware Langevin dynamics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.randomness import spawn_seeds
from flatbayes.core.weights import perturb, trainable_parameters
from flatbayes.flatness.flatness import Flatness, require_progress


@dataclass(frozen=True)
class GaussianSmoothing(Flatness):
    """Asks at weights with Gaussian noise added, other noise in every step; one gradient a step.

    The noise is a pseudorandom function of the seed and the step. It takes nothing from the random stream of
    training, and is the same in a resumed run.

    Attributes:
        std: Standard deviation of the noise on each weight. The displacement has a length of about std times the
            square root of the number of weights, so 0.05 divided by that root is as far as SAM goes.
        seed: Another seed gives other noise in an otherwise identical run.
    """

    std: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.std < inf:
            raise ValueError(f"std is a standard deviation: it must be finite and at least 0, got {self.std}.")

    gradients_per_step = 1  # noise is free
    stationary_after = 0.0  # the expectation over the noise

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is taken at noisy weights, the same ones if it is called again in this step.

        Raises:
            ValueError: No course is given.
        """
        step = require_progress(progress, self).step

        def flat_closure() -> Tensor:
            params = trainable_parameters(model)
            with perturb(params, gaussian_perturbation(params, self.std, self.seed, step)):
                return closure()

        return flat_closure


def gaussian_perturbation(params: Sequence[Tensor], std: float, seed: int, step: int) -> list[Tensor]:
    """The displacement std xi, xi ~ N(0, I), a pseudorandom function of seed and step."""
    (start,) = spawn_seeds(seed, step, count=1)
    generators = {p.device: torch.Generator(p.device).manual_seed(start) for p in params}
    return [
        std * torch.randn(p.shape, generator=generators[p.device], device=p.device, dtype=p.dtype) for p in params
    ]
