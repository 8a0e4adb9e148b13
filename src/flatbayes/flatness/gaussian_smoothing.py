"""Gaussian smoothing: one gradient per step, at weights with Gaussian noise, of a smoothed loss in expectation.

With xi ~ N(0, I), the gradient at w + std xi is an unbiased estimate of that of E L(w + std xi), which is
L(w) + std² / 2 tr(Hessian) to second order. This measures sharpness on average over directions, not in the worst
one, and the gradients are those of one exact loss. With `SGLD` it is flatness-aware Langevin dynamics.

    xi ~ N(0, I) from (flat.seed, run seed, member, step)
    e = std * xi
    .grad = gradient at w + e
    loss = loss at w + e

    flat, progress = GaussianSmoothing(std=0.005), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.context import num_vectorized
from flatbayes.core.gradients import check_trainable, compute_some_gradients
from flatbayes.core.randomness import Stream, draw_normal, spawn_seed
from flatbayes.core.traversal import trainable_by_name
from flatbayes.core.weights import perturb
from flatbayes.flatness.ascent import check_radius_or_auto
from flatbayes.flatness.flatness import Flatness, Radius, require_progress, require_radius


@dataclass(frozen=True)
class GaussianSmoothing(Flatness):
    """One gradient a step, at weights with Gaussian noise.

    Use it for flatness at one gradient a step in a sampler or a variational posterior.

    The noise is a pseudorandom function of the seeds, the member and the step: it does not use the random numbers of
    training, and is the same in a resumed run. It is on every trainable weight, also of layers that the optimizer
    does not have; set requires_grad to False on those. Lazy modules have no weights before the first forward pass, so
    the first step of a network with some has no noise.

    Attributes:
        std: Standard deviation of the noise on each weight. The perturbation has a length of about std times the
            square root of the number of weights, so 0.05 divided by that root is as far as SAM goes.
        seed: Another seed gives other noise in an otherwise identical run; at least 0.

    Examples:
        >>> flatness = GaussianSmoothing(std=0.01)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        1
    """

    std: Radius = 0.005
    seed: int = 0

    radius_field = "std"

    def __post_init__(self) -> None:
        check_radius_or_auto(self.std, "std is a standard deviation")

    gradients_per_step = 1

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken at noisy weights; calls in the same step have the same noise.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress, std = require_progress(progress, self), require_radius(self)

        def flat_closure() -> Tensor:
            params = trainable_by_name(model)
            check_trainable(params, model)
            tensors = list(params.values())
            is_initialized = not any(is_lazy(param) for param in tensors)
            noise = draw_step_noise(tensors, self.seed, progress) if is_initialized else []
            with perturb(tensors, noise, std, overwrite=True) if is_initialized else nullcontext():
                return compute_some_gradients(closure, model, progress, params).loss

        return flat_closure


def draw_step_noise(like: Sequence[Tensor], seed: int, progress: TrainingProgress) -> list[Tensor]:
    """Standard normal noise, a pseudorandom function of the seeds, the member and the step.

    Inside `vectorized`, the networks are along the first dimension of the tensors, and each gets the noise that it
    gets when it is trained alone.
    """
    seeds = [
        spawn_seed(Stream.FLATNESS_NOISE, seed, progress.seed, member, progress.step) for member in progress.members
    ]
    return draw_normal(like, seeds, stacked=num_vectorized() > 0)
