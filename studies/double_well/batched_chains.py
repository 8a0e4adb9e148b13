"""Many small problems of one kind side by side, as the rows of one parameter: chains of a sampler, or fits.

A step of a posterior is the same for every weight, so each row is a run of its own and a thousand cost little more
than one. Only the ball of a flatness joins the weights; here every row has its own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius, gradient_at_perturbation

GradientFn = Callable[[Tensor], Tensor]
"""(rows of weights) -> the gradient of the loss at each of them."""


class BatchedChains(nn.Module):
    """One parameter, a row for each run.

    Args:
        initial_weights: Where the runs begin.
    """

    def __init__(self, initial_weights: Float[Tensor, "runs params"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_weights.clone())


def make_closure(model: BatchedChains, gradient: GradientFn) -> Closure:
    """A closure that leaves every row's gradient in `.grad`; its loss is not asked for, and 0."""

    def closure() -> Tensor:
        model.weight.grad = gradient(model.weight.detach())
        return torch.zeros((), dtype=model.weight.dtype)

    return closure


def make_row_sam_closure(closure: Closure, model: BatchedChains, rho: float, ascent_steps: int = 1) -> Closure:
    """What `SAM(rho, ascent_steps)` makes of the closure, with a ball for every row instead of one for all.

    Args:
        closure: The plain closure.
        model: The rows.
        rho: Radius of each ball; 0 gives the closure itself.
        ascent_steps: Times the displacement is aimed.
    """
    check_radius(rho)
    check_ascent_steps(ascent_steps)
    if rho == 0:
        return closure
    return gradient_at_perturbation(
        lambda _, grads: Perturbation(
            [row_perturbations(grads[0], rho)], torch.ones(()), 1.0
        ),  # of every row its own
        closure,
        model,
        ascent_steps=ascent_steps,
    )


def row_perturbations(grad: Float[Tensor, "runs params"], rho: float) -> Float[Tensor, "runs params"]:
    """The displacement ρ g / ||g|| for each row, zero where g is."""
    norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    return grad * torch.where(norm > 0, rho / norm, 0.0)
