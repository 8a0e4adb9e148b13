"""Random perturbation: the gradient at a random point of the sphere around the weights, a control for SAM.

If training at random points of the sphere did as well as at the worst one, the gain would not be due to sharpness.
Everything but the direction is as in SAM: two gradients, buffers, dropout masks.

    g = gradient at w                                    (as in SAM; it does not decide the direction)
    z ~ N(0, I) from (flat.seed, run seed, member, step)
    e = rho * z / ||z||
    .grad = gradient at w + e

    flat, progress = RandomPerturbation(rho=0.05), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_progress, require_radius
from flatbayes.flatness.gaussian_smoothing import draw_step_noise


@dataclass(frozen=True)
class RandomPerturbation(AscentFlatness):
    """Gradient at a random point of a sphere, a control for SAM.

    Use it as a control: what it gains is not due to the worst direction.

    The direction is a pseudorandom function of the seeds, the member and the step: it does not use the random numbers
    of training, and is the same in a resumed run.

    Attributes:
        rho: Radius of the sphere, in the norm over all trainable weights together.
        seed: Another seed gives other directions in an otherwise identical run; at least 0.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = RandomPerturbation(rho=0.05)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    seed: int = 0
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken at a random point; calls in the same step have the same point.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress, rho = require_progress(progress, self), require_radius(self)
        return self.make_closure(
            lambda weights, grads: random_perturbation(
                grads, draw_step_noise([*weights.values()], self.seed, progress), rho
            ),
            closure,
            model,
            progress,
        )


def random_perturbation(grads: Sequence[Tensor], noise: Sequence[Tensor], rho: float) -> Perturbation:
    """Rho z / ||z||: uniform on the sphere for z ~ N(0, I), the norm over all tensors jointly.

    The gradients do not decide the direction, but one that is not finite makes the norm NaN, so that the ascent ends
    as in SAM. The memory of the noise z is that of the perturbation afterwards.
    """
    return Perturbation(list(noise), global_norm(noise) + 0 * global_norm(grads), rho, owns_directions=True)
