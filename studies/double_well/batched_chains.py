"""Chains of a sampler or variational fits in parallel, as the rows of one parameter.

A posterior updates every weight independently of the others, so each row is a run of its own. Only the ball of a
flatness couples weights; here every row has a ball of its own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius, gradient_at_perturbation

GradientFn = Callable[[Tensor], Tensor]
"""Maps weights to gradients of the loss, both of shape `runs x params`."""


class BatchedChains(nn.Module):
    """A module with one parameter, a row per run.

    Args:
        initial_weights: Initial weights of the runs.
    """

    def __init__(self, initial_weights: Float[Tensor, "runs params"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_weights.clone())


def make_closure(model: BatchedChains, gradient: GradientFn) -> Closure:
    """A closure that leaves the gradient of every row in `.grad` and returns 0 as the loss."""

    def closure() -> Tensor:
        model.weight.grad = gradient(model.weight.detach())
        return torch.zeros((), dtype=model.weight.dtype)

    return closure


def make_row_sam_closure(closure: Closure, model: BatchedChains, rho: float, ascent_steps: int = 1) -> Closure:
    """The closure that `SAM(rho, ascent_steps)` makes, with a ball for every row instead of one ball for all rows.

    Args:
        closure: The plain closure.
        model: The runs.
        rho: Radius of each ball; 0 gives the closure itself.
        ascent_steps: Number of ascent steps.
    """
    check_radius(rho)
    check_ascent_steps(ascent_steps)
    if rho == 0:
        return closure
    return gradient_at_perturbation(
        lambda _, grads: Perturbation([row_perturbations(grads[0], rho)], torch.ones(()), 1.0),
        closure,
        model,
        ascent_steps=ascent_steps,
    )


def row_perturbations(grad: Float[Tensor, "runs params"], rho: float) -> Float[Tensor, "runs params"]:
    """The perturbation ρ g / ||g|| of each row; zero where g is zero."""
    norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    return grad * torch.where(norm > 0, rho / norm, 0.0)
