"""Sharpness-aware minimisation (SAM): the gradient at the worst point of a Euclidean ball around the weights.

Foret et al., ICLR 2021, Algorithm 1. The worst point of max over ||e|| <= rho of L(w + e) is approximated by
first-order ascent; more ascent steps (a generalised power method) approach the exact maximum:

    g = gradient at w
    repeat ascent_steps times:
        e = rho * g / ||g||
        g = gradient at w + e
    .grad = g

    flat = SAM(rho=0.05)
    loss = flat(closure, model)()
    optimizer.step()
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.parameter_selection import ParameterSelection
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_radius

DEFAULT_RADIUS = 0.05


@dataclass(frozen=True)
class SAM(AscentFlatness):
    """Gradient at the worst point of a Euclidean ball.

    Use it first: its radius is the only number to tune.

    Attributes:
        rho: Radius of the ball, in the norm over all trainable weights together. `auto`: chosen on validation
            examples in the training, 0 among the values. None: 0.05, or `auto` for a table where the number of epochs
            is automatic.
        ascent_steps: Number of ascent steps; each costs one gradient.
        resample_noise: Draw new dropout masks in the second pass, as the authors' code does, instead of replaying
            those of the first.
        ascent_batch_fraction: Fraction of the batch that the ascent is computed on. It saves time if the closure
            passes its batch through `flatbayes.core.subset_batch`.
        params: The parameters that are perturbed: `norms`, those of normalisation layers (Mueller et al., NeurIPS
            2023), with a radius about ten times as large; `last_layer`, `weights`, `biases`, `no_biases`, `all`, or
            a list of name patterns. The ascent computes no other gradients.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = SAM(rho=0.1)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius | None = None
    ascent_steps: int = 1
    resample_noise: bool = False
    ascent_batch_fraction: float = 1.0
    params: ParameterSelection = "all"
    nuisance: list[str] | None = None

    radius_field = "rho"

    @property
    def radius(self) -> Radius:
        """Rho, or its default."""
        return DEFAULT_RADIUS if self.rho is None else self.rho

    @property
    def reference_radius(self) -> float:
        """Ten times as large for the layers of normalisation."""
        return DEFAULT_RADIUS * (10 if self.params == "norms" else 1)

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the ball."""
        rho = require_radius(self)
        return self.make_closure(lambda _, grads: euclidean_perturbation(grads, rho), closure, model, progress)


def euclidean_perturbation(grads: Sequence[Tensor], rho: float) -> Perturbation:
    """Maximiser of <g, e> over ||e|| <= rho: e = rho g / ||g||, the norm over all tensors jointly; zero if g is."""
    return Perturbation(list(grads), global_norm(grads), rho)
