"""Mean-field variational inference with a Gaussian q(w) = N(mean, diag(std²)): formulas, gradients and validation.

The prior of each weight is N(prior_mean, 1 / prior_precision), the standard deviation is softplus(raw), and the
objective per training example, the negative evidence lower bound (ELBO) divided by the number of examples, is the
expected mean negative log likelihood plus kl_weight KL(q || prior), with kl_weight = temperature / num_data.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from flatbayes.core import Closure, OptimizerFactory
from flatbayes.core.gaussians import weight_distribution
from flatbayes.core.gradients import dense_gradient
from flatbayes.core.tensor_lists import clone_tensors, copy_values, unflatten
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.optimization import build_optimizer, check_temperature, max_weight_decay
from flatbayes.posteriors.prior_precision import PriorPrecision, check_prior_precision_spec

WeightPrecision = float | Float[Tensor, " params"]
"""One precision for all weights, or one for each."""

MIN_STD = 1e-8
"""Smallest standard deviation: softplus underflows to 0, where the KL divergence is infinite."""


def raw_to_std(raw: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return softplus(raw) = log(1 + exp(raw)), at least `MIN_STD`."""
    return F.softplus(raw).clamp_(min=MIN_STD)


def gaussian_kl(
    mean: Float[Tensor, " params"],
    std: Float[Tensor, " params"],
    prior_mean: Float[Tensor, " params"],
    prior_precision: WeightPrecision,
) -> Float[Tensor, ""]:
    """Return KL(q || prior) in nats: the sum of log(s / std) + (std² + (mean - prior_mean)²) / (2 s²) - 1/2.

    Here s² = 1 / prior_precision. This is the direction of the evidence lower bound. The reverse, KL(prior || q),
    would penalize a narrow q.

    Args:
        mean: Means of q.
        std: Standard deviations of q.
        prior_mean: Means of the prior.
        prior_precision: Precision of the prior.
    """
    precision = torch.as_tensor(prior_precision, dtype=mean.dtype, device=mean.device)
    second_moment = precision * (std.square() + (mean - prior_mean).square())
    return ((second_moment - 1 - precision.log()) / 2 - std.log()).sum()


def add_kl_gradients(
    mean_grads: list[Tensor],
    std_grads: list[Tensor],
    means: list[Tensor],
    stds: list[Tensor],
    prior_precision: float | list[Tensor],
    kl_weight: float,
) -> None:
    """Add `kl_weight` times the derivatives of `gaussian_kl` to gradients, in place.

    Args:
        mean_grads: Gradients in the means; this and the other lists hold one tensor or many.
        std_grads: Gradients in the standard deviations.
        means: Means of q minus those of the prior.
        stds: Standard deviations of q.
        prior_precision: Precision of the prior: one number, or for each tensor one that broadcasts to it.
        kl_weight: Weight of the KL divergence (summed over weights) relative to a loss that is a mean over examples.
    """
    for grads, values in ((mean_grads, means), (std_grads, stds)):
        if isinstance(prior_precision, list):
            torch._foreach_addcmul_(grads, prior_precision, values, value=kl_weight)  # rounds like the line below
        else:
            torch._foreach_add_(grads, values, alpha=kl_weight * prior_precision)
    torch._foreach_add_(std_grads, torch._foreach_reciprocal(stds), alpha=-kl_weight)


def convert_to_elbo_gradients(
    grad: Float[Tensor, " params"],
    grad_times_noise: Float[Tensor, " params"],
    mean: Float[Tensor, " params"],
    raw: Float[Tensor, " params"],
    std: Float[Tensor, " params"],
    prior_mean: Float[Tensor, " params"] | None,
    prior_precision: WeightPrecision,
    kl_weight: float,
) -> None:
    """Convert gradients of the loss to those of the objective in `mean` and `raw`, in place.

    This is the chain rule through w = mean + std noise. With g the gradient of the loss at w (dw / dmean = 1,
    dw / dstd = noise, dstd / draw = sigmoid(raw)):

        d/dmean = g + kl_weight dKL/dmean,    d/draw = (g noise + kl_weight dKL/dstd) sigmoid(raw)

    Where the standard deviation is clamped to `MIN_STD` the derivative is that of the softplus, so that it can grow.

    Source: Blundell et al. (ICML 2015), section 3.2.

    Args:
        grad: g, averaged over the sampled weights; overwritten by the derivative in `mean`.
        grad_times_noise: g times noise, averaged over the sampled weights; overwritten by the derivative in `raw`.
        mean: Means of q.
        raw: Standard deviations of q before the softplus.
        std: Standard deviations of q.
        prior_mean: Means of the prior; None for zero.
        prior_precision: Precision of the prior.
        kl_weight: Weight of the KL divergence (summed over weights) relative to a loss that is a mean over examples.
    """
    distance = mean if prior_mean is None else mean - prior_mean
    precision = [prior_precision] if isinstance(prior_precision, Tensor) else prior_precision
    add_kl_gradients([grad], [grad_times_noise], [distance], [std], precision, kl_weight)
    grad_times_noise.mul_(torch.sigmoid(raw))


def average_sample_gradients(
    closure: Closure,
    params: Sequence[nn.Parameter],
    others: Sequence[nn.Parameter],
    mean: Float[Tensor, " params"],
    std: Float[Tensor, " params"],
    num_samples: int,
    *,
    squared: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Average loss and gradients over weights w = mean + std noise, with one call of the closure for each sample.

    The noise is drawn here, once for each call, so that a closure that accumulates the gradient over micro-batches
    has one sample of the weights for all of them. A parameter without a gradient counts as zero.

    With `squared` the second result is g² instead of g times the noise.

    Returns:
        The loss; and the gradient g in the sampled weights, g times the noise, and the gradients of `others`.
    """
    means, stds = unflatten(mean, params), unflatten(std, params)
    losses: list[Tensor] = []
    totals: tuple[Tensor, ...] = ()
    for _ in range(num_samples):
        noise = torch.randn_like(mean)
        weights = torch.addcmul(mean, std, noise)
        pieces = unflatten(weights, params)
        with swap_values(params, pieces), weight_distribution(params, means, stds):
            losses.append(closure())
        copy_values(pieces, _get_gradients(params))  # the memory of the sampled weights is free: the model has a copy
        product = torch.square(weights, out=noise) if squared else noise.mul_(weights)
        sampled = (weights, product, *clone_tensors(_get_gradients(others)))
        if totals:
            torch._foreach_add_(totals, sampled)
        else:
            totals = sampled
    if num_samples == 1:
        return losses[0], totals
    torch._foreach_mul_(totals, 1 / num_samples)
    return torch.stack(losses).mean(), totals


def _get_gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return gradients, zeros where there is none, and leave `.grad` as it is."""
    return [dense_gradient(param) for param in params]


def check_variational_options(prior_precision: object, temperature: float, initial_std: float) -> None:
    """Validate the options that SGVB and LRT share."""
    check_prior_precision_spec(prior_precision)
    check_temperature(temperature)
    if not MIN_STD <= initial_std < math.inf:
        raise ValueError(f"initial_std must be finite and at least {MIN_STD}, got {initial_std}.")


def init_variational_optimizer(
    make_optimizer: OptimizerFactory | None,
    model: nn.Module,
    raw_scales: Sequence[nn.Parameter],
    prior_precision: PriorPrecision,
    noun: str = "standard deviations",
) -> Optimizer | None:
    """Build the optimizer over the trainable parameters and the raw standard deviations, and validate it.

    Without `make_optimizer`, for a state that is only drawn from, there is none; `noun` is for the error message.

    Raises:
        ValueError: The optimizer has a weight decay, which would be a second prior, omits the standard deviations, or
            has parameters of another network.
    """
    if make_optimizer is None:
        return None
    optimizer = build_optimizer(make_optimizer, [*trainable_parameters(model), *raw_scales])
    decay = max_weight_decay(optimizer)
    if decay > 0:
        raise ValueError(
            f"The prior is given twice: prior_precision={prior_precision}, and an optimizer with "
            f"weight_decay={decay}, which would be a second prior on the weights and one on the {noun}. "
            "Set weight_decay=0 and choose prior_precision instead."
        )
    optimized_ids = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if any(id(raw) not in optimized_ids for raw in raw_scales):
        raise ValueError(
            f"The optimizer omits the {noun}, so they would never be trained. Build it over all "
            "parameters that it is given, including those that do not require a gradient, not over the model's."
        )
    return optimizer
