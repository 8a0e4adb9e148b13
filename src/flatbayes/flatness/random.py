"""A displacement of SAM's size in a random direction: the control experiment for every flat result.

If training at random points of the sphere did as well as at the worst one, the gain would not be due to
sharpness. Everything but the direction is as in SAM: two gradients, buffers, noise.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Course
from flatbayes.core.norms import global_norm
from flatbayes.core.stacked import stacked_networks
from flatbayes.flatness.ascent import Offset, asked_at, check_radius
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class Random(Flatness):
    """Asks at a uniformly random point of the sphere around the weights.

    Attributes:
        rho: Radius of the sphere.
        seed: Another seed gives other directions in an otherwise identical run.
        fresh_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    rho: float = 0.05
    seed: int = 0
    fresh_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)

    @property
    def gradients(self) -> int:
        """Two, as for SAM; the first moves the running statistics at the undisplaced weights."""
        return 2

    one_loss_from = 0.0  # the mean loss on the sphere

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The closure whose gradient is taken at a random point of the sphere."""
        return asked_at(
            lambda _, grads: random_offset(grads, self.rho, self.seed),
            closure,
            model,
            fresh_noise=self.fresh_noise,
        )


def random_offset(grads: Sequence[Tensor], rho: float, seed: int) -> Offset:
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
    if stacked_networks():
        raise ValueError(
            "Random takes its directions from the last bits of a norm, which differ in stacked networks."
        )
    norm = global_norm(grads)
    if not bool(norm.isfinite()):
        return Offset(list(grads), norm, rho)
    (bits,) = struct.unpack("<q", struct.pack("<d", float(norm)))
    generator = torch.Generator(grads[0].device).manual_seed((bits ^ (seed * 0x9E3779B97F4A7C15)) % 2**63)
    noise = [torch.randn(g.shape, generator=generator, device=g.device, dtype=g.dtype) for g in grads]
    return Offset(noise, global_norm(noise), rho)
