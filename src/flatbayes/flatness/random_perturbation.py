"""A displacement of SAM's size in a random direction: the control experiment for every flat result.

If training at random points of the sphere did as well as at the worst one, the gain would not be due to
sharpness. Everything but the direction is as in SAM: two gradients, buffers, noise.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.stacked import num_vectorized
from flatbayes.flatness.ascent import Perturbation, check_radius, gradient_at_perturbation
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class RandomPerturbation(Flatness):
    """Asks at a uniformly random point of the sphere around the weights.

    Attributes:
        rho: Radius of the sphere.
        seed: Another seed gives other directions in an otherwise identical run.
        resample_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    rho: float = 0.05
    seed: int = 0
    resample_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)

    @property
    def gradients_per_step(self) -> int:
        """Two, as for SAM; the first moves the running statistics at the undisplaced weights."""
        return 2

    stationary_after = 0.0  # the mean loss on the sphere

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is taken at a random point of the sphere."""
        return gradient_at_perturbation(
            lambda _, grads: random_perturbation(grads, self.rho, self.seed),
            closure,
            model,
            resample_noise=self.resample_noise,
        )


def random_perturbation(grads: Sequence[Tensor], rho: float, seed: int) -> Perturbation:
    """Uniform on the sphere of radius rho: e = rho z / ||z||, z ~ N(0, I).

    The direction is a pseudorandom function of the gradient's norm and the seed. So it takes nothing from the
    random stream of training, needs no state of its own, and comes out the same in a resumed run.

    Args:
        grads: One gradient per tensor; only their shapes and their norm matter.
        rho: Radius of the sphere.
        seed: Selects the pseudorandom function.

    Returns:
        One displacement per tensor; along the gradient where that is not finite, so that it is seen to be so.
    """
    if num_vectorized():
        raise ValueError(
            "Random takes its directions from the last bits of a norm, which differ in stacked networks."
        )
    norm = global_norm(grads)
    if not bool(norm.isfinite()):
        return Perturbation(list(grads), norm, rho)
    (bits,) = struct.unpack("<q", struct.pack("<d", float(norm)))
    generator = torch.Generator(grads[0].device).manual_seed((bits ^ (seed * 0x9E3779B97F4A7C15)) % 2**63)
    noise = [torch.randn(g.shape, generator=generator, device=g.device, dtype=g.dtype) for g in grads]
    return Perturbation(noise, global_norm(noise), rho)
