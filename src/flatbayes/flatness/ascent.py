"""The ascent loop of sharpness-aware training: the gradient of a closure at perturbed weights.

    rng = random state
    loss = closure()                                        pass 1: buffers advance, here and only here
    repeat ascent_steps times:
        e = perturbation_fn(weights, gradients)
        with weights + e, buffers preserved, random state rng:
            closure()                                       the last pass leaves the gradient in .grad
    return loss

All passes but the last compute on `ascent_batch_fraction` of the batch, and only the gradients of `params`. One rule
for everything else holds for every fraction: buffers advance in the first pass, the loss is that of the first pass,
every pass starts from the same random state (unless `resample_noise`), and the random state afterwards is that after
one pass over the whole batch.

    perturbation_fn = lambda weights, grads: Perturbation(list(grads), global_norm(grads), rho)
    loss = gradient_at_perturbation(perturbation_fn, closure, model)()
    optimizer.step()
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import preserve_buffers
from flatbayes.core.context import batch_fraction
from flatbayes.core.parameter_selection import ParameterSelection, only_requires_grad, select_parameters
from flatbayes.core.randomness import RandomState, rewind_rng
from flatbayes.core.weights import axpy, perturb

MIN_NORM = 1e-30
"""Smallest divisor where a norm stays a tensor, so that a zero gradient is no perturbation."""


@dataclass(frozen=True)
class Perturbation:
    """A perturbation of the weights of length `rho`: rho / norm * direction, zero for a zero norm.

    The product is not computed here, since every pass over all weights costs time.

    Attributes:
        directions: One direction per tensor.
        norm: Their norm in the geometry of the ball, a tensor without dimensions, or one for each vectorized network.
        rho: The radius, a number or a tensor of the norm's shape.
    """

    directions: list[Tensor]
    norm: Tensor
    rho: float | Tensor

    @property
    def is_finite(self) -> bool:
        """Whether the norm is finite; True without a check on accelerators, and of vectorized networks."""
        return self._keeps_norm_as_tensor or math.isfinite(self.norm.item())

    @property
    def scale(self) -> float | Tensor:
        """The radius divided by the norm: a number, or a tensor on accelerators and for vectorized networks."""
        if self._keeps_norm_as_tensor:
            return self.norm.clamp(min=MIN_NORM).reciprocal() * self.rho
        norm = self.norm.item()
        return float(self.rho) / norm if norm > 0 else 0.0

    def to_tensors(self) -> list[Tensor]:
        """The perturbation of each tensor."""
        return axpy([torch.zeros_like(direction) for direction in self.directions], self.directions, self.scale)

    @property
    def _keeps_norm_as_tensor(self) -> bool:
        return self.norm.ndim > 0 or not self.norm.is_cpu  # reading a norm on an accelerator waits for it


PerturbationFn = Callable[[Mapping[str, Tensor], Sequence[Tensor]], Perturbation]
"""(weights by name, their gradients) -> perturbation of the unperturbed weights."""


def gradient_at_perturbation(
    perturbation_fn: PerturbationFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int = 1,
    resample_noise: bool = False,
    ascent_batch_fraction: float = 1.0,
    params: ParameterSelection = "all",
) -> Closure:
    """Make a closure whose gradient is taken after `ascent_steps` steps of ascent.

    With e_0 = 0, each step sets e_{k+1} = perturbation_fn(gradient at w + e_k). If a gradient is not finite, the
    ascent ends, and `.grad` is left for a loss scaler, or the user, to check. On accelerators, and for vectorized
    networks, finiteness is not checked, since that would wait for the device; the later gradients are then not finite
    either.

    Args:
        perturbation_fn: Computes the perturbation, always from the unperturbed weights.
        closure: The plain closure.
        model: The module whose trainable parameters are perturbed.
        ascent_steps: Number of perturbations before the final gradient.
        resample_noise: Draw new random numbers, such as dropout masks, in every pass. The random state afterwards is
            then that after all passes.
        ascent_batch_fraction: Fraction of the batch that the passes before the final one compute on; see
            `flatbayes.core.subset_batch`.
        params: The parameters that are perturbed. The passes before the final one compute no other gradients.

    Returns:
        A closure that returns the loss of the first pass.
    """
    has_partial_passes = ascent_batch_fraction < 1 or params != "all"

    def flat_closure() -> Tensor:
        candidates = dict(model.named_parameters()) if params == "all" else select_parameters(model, params, "params")

        def ascent_closure() -> Tensor:
            with ExitStack() as stack:
                if ascent_batch_fraction < 1:
                    stack.enter_context(batch_fraction(ascent_batch_fraction))
                if params != "all":
                    stack.enter_context(only_requires_grad(model, candidates))
                return closure()

        rng_state = RandomState.capture(model)
        loss = ascent_closure()
        weights = {name: p for name, p in candidates.items() if p.grad is not None}
        tensors = list(weights.values())
        for steps_left in reversed(range(ascent_steps)):
            perturbation = None
            if tensors:
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
                perturbation = perturbation_fn(weights, grads)
                del grads  # a reference would keep the memory of the old gradients during the next pass
                if not perturbation.is_finite:
                    perturbation = None
            if perturbation is None and not has_partial_passes:
                break  # .grad is already that of the whole batch at the unperturbed weights
            is_final = steps_left == 0 or perturbation is None
            with ExitStack() as stack:
                stack.enter_context(preserve_buffers(model))
                if not resample_noise:
                    stack.enter_context(rewind_rng(rng_state))
                if perturbation is not None:
                    stack.enter_context(perturb(tensors, perturbation.directions, perturbation.scale))
                (closure if is_final else ascent_closure)()
            if is_final:
                break
        return loss

    return flat_closure


def check_radius(rho: float) -> None:
    """Check that a radius is finite and at least 0.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= rho <= sys.float_info.max:  # also of integers that no float can hold
        raise ValueError(f"rho is the radius of a ball: it must be finite and at least 0, got {rho}.")


def check_ascent_steps(ascent_steps: int) -> None:
    """Check that there is at least one ascent step.

    Raises:
        ValueError: There is none.
    """
    if ascent_steps < 1:
        raise ValueError(f"ascent_steps must be at least 1, got {ascent_steps}; for no ascent use Plain().")


def check_ascent_batch_fraction(ascent_batch_fraction: float) -> None:
    """Check that a fraction of the batch is above 0 and at most 1.

    Raises:
        ValueError: It is not.
    """
    if not 0 < ascent_batch_fraction <= 1:
        raise ValueError(
            "ascent_batch_fraction is a fraction of the batch: it must be above 0 and at most 1, got "
            f"{ascent_batch_fraction}."
        )
