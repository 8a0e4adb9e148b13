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
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.buffers import find_changed, mark_frozen, preserve_buffers
from flatbayes.core.context import batch_fraction
from flatbayes.core.devices import is_accelerator
from flatbayes.core.gradients import (
    FreshGradients,
    check_loss,
    check_trainable,
    compute_fresh_gradients,
    dense_gradient,
    format_missing_gradients,
    may_lack_gradients,
    replace_gradient,
)
from flatbayes.core.names import format_names
from flatbayes.core.norms import combine_norms, tensor_norms
from flatbayes.core.parameter_selection import ParameterSelection, only_requires_grad, select_parameters
from flatbayes.core.randomness import RandomState, rewind_rng
from flatbayes.core.tensor_lists import full_tensors, group_tensors
from flatbayes.core.traversal import named_parameters, trainable_by_name
from flatbayes.core.weights import axpy, perturb

NO_GRADIENT_ERROR = "does not require grad"
"""What autograd says of a loss that depends on no parameter that requires gradients."""

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
        owns_directions: Whether nothing else holds the directions, so that their memory may be overwritten.
    """

    directions: list[Tensor]
    norm: Tensor
    rho: float | Tensor
    owns_directions: bool = False

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
        return axpy(full_tensors(self.directions, 0.0), self.directions, self.scale)

    @property
    def _keeps_norm_as_tensor(self) -> bool:
        return self.norm.ndim > 0 or is_accelerator(self.norm)  # reading a norm on an accelerator waits for it


PerturbationFn = Callable[[Mapping[str, Tensor], Sequence[Tensor]], Perturbation]
"""(weights by name, their gradients) -> perturbation of the unperturbed weights."""


def perturbation_in_groups(
    compute_group: Callable[[list[int]], tuple[Sequence[Tensor], Sequence[Tensor]]],
    like: Sequence[Tensor],
    rho: float,
) -> Perturbation:
    """A perturbation that is computed group by group, so that intermediate results need the memory of one group.

    Args:
        compute_group: Computes, for the indices of some tensors, their directions, in new memory, and the tensors
            whose joint norm is the norm of the directions in the geometry of the ball.
        like: One tensor per direction, of its shape.
        rho: The radius.
    """
    directions, norms = list(like), list(like)
    for group in group_tensors(like):
        group_directions, measured = compute_group(group)
        for k, direction, norm in zip(group, group_directions, tensor_norms(measured), strict=True):
            directions[k], norms[k] = direction, norm
    return Perturbation(directions, combine_norms(norms), rho, owns_directions=True)


def gradient_at_perturbation(
    perturbation_fn: PerturbationFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int = 1,
    resample_noise: bool = False,
    ascent_batch_fraction: float = 1.0,
    params: ParameterSelection = "all",
    nuisance: Sequence[str] | None = None,
    progress: TrainingProgress | None = None,
) -> Closure:
    """Make a closure whose gradient is taken after `ascent_steps` steps of ascent.

    With e_0 = 0, each step sets e_{k+1} = perturbation_fn(gradient at w + e_k). If the gradient of any pass is not
    finite, that of the step is not finite either, for a loss scaler, or the user, to check: the ascent ends, and
    leaves it in `.grad`. On accelerators, and for vectorized networks, where that check would wait for the device,
    the passes go on at weights that are not finite, with the same result.

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
        nuisance: Name patterns of parameters that are not perturbed, and whose gradient is that of the first pass,
            at the unperturbed weights.
        progress: Progress of training. After the first step, a step whose loss does not depend on the selected
            parameters has no perturbation; in the first step, or without the progress, that is an error.

    Returns:
        A closure that returns the loss of the first pass. It perturbs the parameters whose gradient the first pass
        computed: those that require gradients, take part in the loss, and whose gradients the closure zeroes.

    Raises:
        ValueError: When the closure is called, and nothing can be perturbed.
        RuntimeError: When the closure is called, and it computes no gradient.
        TypeError: When the closure is called, and it returns no loss.
    """
    has_partial_passes = ascent_batch_fraction < 1 or params != "all"
    memory = None if progress is None else progress.memory

    def flat_closure() -> Tensor:
        all_params = named_parameters(model)
        trainable = {name: param for name, param in all_params.items() if param.requires_grad}
        check_trainable(trainable, model)
        selected = None if params == "all" else select_parameters(model, params, "params")
        fixed = select_parameters(model, list(nuisance), "nuisance") if nuisance else {}
        ascent_closure = closure
        if has_partial_passes:
            needed = None if selected is None else {**selected, **fixed}
            ascent_closure = partial(_run_partial_pass, closure, model, needed, ascent_batch_fraction)
        rng_state = RandomState.capture_devices_of(all_params.values())
        marks = mark_frozen(all_params.values())
        fresh = _compute_ascent_gradients(ascent_closure, trainable, selected)
        averaged = find_changed(marks)
        weights = {} if fresh is None else {name: p for name, p in fresh.params.items() if name not in fixed}
        unperturbed_grads = {name: dense_gradient(p).clone() for name, p in fixed.items() if p.grad is not None}
        if not weights and not may_lack_gradients(closure, progress):
            raise _make_unused_error(model, params, selected)
        tensors = list(weights.values())
        for steps_left in reversed(range(ascent_steps)):
            perturbation = None
            if tensors:
                perturbation = perturbation_fn(weights, [dense_gradient(p) for p in tensors])
                if not perturbation.is_finite:
                    break  # the gradient that is not finite stays
            if perturbation is None and not has_partial_passes:
                break  # .grad is already that of the whole batch at the unperturbed weights
            is_final = steps_left == 0 or perturbation is None
            for param in () if fresh is None else fresh.uncleared:
                param.grad = None
            replayed = nullcontext() if resample_noise else rewind_rng(rng_state)
            perturbed = (
                nullcontext()
                if perturbation is None
                else perturb(
                    tensors,
                    perturbation.directions,
                    perturbation.scale,
                    overwrite=perturbation.owns_directions,
                    memory=memory,
                )
            )
            with preserve_buffers(model, averaged), replayed, perturbed:
                last_loss = (closure if is_final else ascent_closure)()
            if is_final:
                for name, grad in unperturbed_grads.items():
                    replace_gradient(fixed[name], grad)
                break
        return check_loss(last_loss) if fresh is None else fresh.loss

    return flat_closure


def _run_partial_pass(
    closure: Closure, model: nn.Module, selected: Mapping[str, nn.Parameter] | None, fraction: float
) -> Tensor:
    with ExitStack() as stack:
        if fraction < 1:
            stack.enter_context(batch_fraction(fraction))
        if selected is not None:
            stack.enter_context(only_requires_grad(model, selected))
        return check_loss(closure())


def _compute_ascent_gradients(
    closure: Closure,
    trainable: Mapping[str, nn.Parameter],
    selected: Mapping[str, nn.Parameter] | None,
) -> FreshGradients | None:
    """Fresh gradients of the selected parameters; None if the loss does not depend on them."""
    try:
        fresh = compute_fresh_gradients(closure, trainable)
    except RuntimeError as error:
        if selected is None or NO_GRADIENT_ERROR not in str(error):
            raise
        return None
    if selected is None:
        return fresh
    return fresh._replace(params={name: p for name, p in fresh.params.items() if name in selected})


def _make_unused_error(
    model: nn.Module, params: ParameterSelection, selected: Mapping[str, nn.Parameter] | None
) -> Exception:
    if selected is None:
        return RuntimeError(format_missing_gradients(model))
    last_layer_hint = "last_layer is the last module in the order of registration. " * (params == "last_layer")
    return ValueError(
        f"params={params!r} selects {format_names(selected)}, of which the closure computes no gradient: either the "
        "loss does not depend on them, or the optimizer whose zero_grad the closure calls does not have them. "
        f"{last_layer_hint}Select others by name, such as params=['head.*']; the trainable parameters are "
        f"{format_names(trainable_by_name(model))}."
    )


def check_radius(radius: float, meaning: str = "rho is the radius of a ball", *, alternative: str = "") -> None:
    """Check that the size of a perturbation is finite and at least 0; `meaning` starts the message."""
    is_huge = isinstance(radius, int) and radius > sys.float_info.max  # an integer that no float can hold
    if isinstance(radius, str) or is_huge or not 0 <= radius < math.inf:
        raise ValueError(f"{meaning}: it must be finite and at least 0{alternative}, got {radius!r}.")


def check_radius_or_auto(radius: float | Literal["auto"], meaning: str = "rho is the radius of a ball") -> None:
    """Check the field of a flatness that `radius_field` names: `auto`, or as `check_radius`."""
    if radius != "auto":
        check_radius(radius, meaning, alternative=", or 'auto'")


def check_ascent_steps(ascent_steps: int) -> None:
    """Check that there is at least one ascent step."""
    if ascent_steps < 1:
        raise ValueError(f"ascent_steps must be at least 1, got {ascent_steps}; for no ascent use Plain().")


def check_nuisance(nuisance: Sequence[str] | None, ascent_batch_fraction: float = 1.0) -> None:
    """Check that nuisance parameters are given by name patterns, and that the first pass has the whole batch."""
    if isinstance(nuisance, str) or nuisance == []:
        raise ValueError(f"nuisance must be a list of name patterns, such as ['*.raw_scale'], got {nuisance!r}.")
    if nuisance and ascent_batch_fraction < 1:
        raise ValueError(
            "The gradient of nuisance parameters is that of the first pass, which needs the whole batch: leave out "
            f"ascent_batch_fraction, got {ascent_batch_fraction}, or nuisance."
        )


def check_ascent_batch_fraction(ascent_batch_fraction: float) -> None:
    """Check that a fraction of the batch is above 0 and at most 1."""
    if not 0 < ascent_batch_fraction <= 1:
        raise ValueError(
            "ascent_batch_fraction is a fraction of the batch: it must be above 0 and at most 1, got "
            f"{ascent_batch_fraction}."
        )
