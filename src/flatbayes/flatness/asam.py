"""Adaptive SAM (ASAM): the gradient at the worst point of a ball whose axes scale with the weights.

Kwon et al., ICML 2021. Scaling one layer up and the next one down leaves the function of the network unchanged but
not its Euclidean sharpness; sharpness in the norm ||e / T|| with T = |w| does not change. As in the authors' code,
T = |w| + eta for tensors with `weight` in their name, and 1 for the others, such as biases (Algorithm 1):

    g = gradient at w
    repeat ascent_steps times:
        e = rho * T² g / ||T g||
        g = gradient at w + e
    .grad = g

    flat = ASAM(rho=0.5)
    loss = flat(closure, model)()
    optimizer.step()
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.parameter_selection import ParameterSelection
from flatbayes.core.tensor_lists import full_tensors
from flatbayes.flatness.ascent import Perturbation, perturbation_in_groups
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_radius


@dataclass(frozen=True)
class ASAM(AscentFlatness):
    """Gradient at the worst point of a ball scaled by the weights.

    Use it where layers have weights of different scale, as without normalisation.

    Attributes:
        rho: Radius relative to the weights; ten times that of SAM is usual.
        eta: Added to |w|, so that weights at zero can be perturbed too.
        ascent_steps: Number of ascent steps; each costs one gradient.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        ascent_batch_fraction: Fraction of the batch that the ascent is computed on. It saves time if the closure
            passes its batch through `flatbayes.core.subset_batch`.
        params: The parameters that are perturbed: `norms`, those of normalisation layers (Mueller et al., NeurIPS
            2023), with a radius about ten times as large; `last_layer`, `weights`, `biases`, `no_biases`, `all`, or
            a list of name patterns. The ascent computes no other gradients.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = ASAM(rho=0.5)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.5
    eta: float = 0.01
    ascent_steps: int = 1
    resample_noise: bool = False
    ascent_batch_fraction: float = 1.0
    params: ParameterSelection = "all"
    nuisance: list[str] | None = None

    radius_field = "rho"

    @property
    def reference_radius(self) -> float:
        """Ten times as large for the layers of normalisation."""
        return super().reference_radius * (10 if self.params == "norms" else 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta is added to |w|: it must be finite and at least 0, got {self.eta}.")

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the adaptive ball."""
        return self.make_closure(partial(self._compute_perturbation, require_radius(self)), closure, model, progress)

    def _compute_perturbation(
        self, rho: float, weights: Mapping[str, Tensor], grads: Sequence[Tensor]
    ) -> Perturbation:
        items = list(weights.items())
        return scaled_perturbation(grads, lambda group: adaptive_scale(dict(items[k] for k in group), self.eta), rho)


def adaptive_scale(weights: Mapping[str, Tensor], eta: float) -> list[Tensor]:
    """T: `|w| + eta` for tensors with `weight` in their full name, 1 for all others: the rule of the authors' code.

    Besides `weight` these are `in_proj_weight` of attention, `weight_ih_l0` of recurrent layers, scales of
    normalisation layers, and the tensors of parametrised weights (`parametrizations.weight.original0`).
    """
    scaled = {name: weight.detach() for name, weight in weights.items() if "weight" in name}
    others = {name: weight.detach() for name, weight in weights.items() if name not in scaled}
    scales = dict(zip(others, full_tensors(list(others.values()), 1.0), strict=True))
    if scaled:
        absolute = list(torch._foreach_abs(list(scaled.values())))
        torch._foreach_add_(absolute, eta)
        scales |= dict(zip(scaled, absolute, strict=True))
    return [scales[name] for name in weights]


def adaptive_perturbation(grads: Sequence[Tensor], scale: Sequence[Tensor], rho: float) -> Perturbation:
    """Maximiser of <g, e> over ||e / T|| <= rho: e = rho T² g / ||T g|| (Kwon et al., Algorithm 1).

    T is `scale`, positive. The perturbation is zero for a zero gradient.
    """
    return scaled_perturbation(grads, lambda group: [scale[k] for k in group], rho)


def scaled_perturbation(
    grads: Sequence[Tensor], compute_scale: Callable[[list[int]], Sequence[Tensor]], rho: float
) -> Perturbation:
    """The result of `adaptive_perturbation`, with T computed group by group."""

    def compute_group(group: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        scale = list(compute_scale(group))
        scaled = list(torch._foreach_mul([grads[k] for k in group], scale))
        return list(torch._foreach_mul(scaled, scale)), scaled

    return perturbation_in_groups(compute_group, grads, rho)
