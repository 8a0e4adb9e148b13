"""Formulas of mean-field variational inference with a Gaussian q(w) = N(mean, diag(std²)).

The prior of each weight is N(prior_mean, 1 / prior_precision), the standard deviation is softplus(raw), and the
objective per training example is the expected mean negative log likelihood plus kl_weight KL(q || prior), with
kl_weight = temperature / num_data.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from flatbayes.posteriors.prior_precision import PriorPrecision

WeightPrecision = float | Float[Tensor, " params"]
"""One precision for all weights, or one for each."""

MIN_STD = 1e-8
"""Smallest standard deviation: softplus underflows to 0, and the KL divergence of a point is infinite."""


def raw_to_std(raw: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Softplus, log(1 + exp(raw)), but at least `MIN_STD`."""
    return F.softplus(raw).clamp_(min=MIN_STD)


def std_to_raw(std: float) -> float:
    """Inverse of the softplus, log(exp(std) - 1), without overflow for large or cancellation for small values.

    >>> from math import exp, log
    >>> round(log(1 + exp(std_to_raw(0.25))), 12)
    0.25
    """
    return std + math.log(-math.expm1(-std))


def gaussian_kl(
    mean: Float[Tensor, " params"],
    std: Float[Tensor, " params"],
    prior_mean: Float[Tensor, " params"],
    prior_precision: WeightPrecision,
) -> Float[Tensor, ""]:
    """KL(q || prior) in nats: the sum of log(s / std) + (std² + (mean - prior_mean)²) / (2 s²) - 1/2.

    Here s² = 1 / prior_precision. This is the direction of the evidence lower bound; the reverse, KL(prior || q),
    hardly lets q be narrow.

    Args:
        mean: Means of q.
        std: Standard deviations of q.
        prior_mean: Means of the prior.
        prior_precision: Precision of the prior.
    """
    precision = torch.as_tensor(prior_precision, dtype=mean.dtype, device=mean.device)
    spread = precision * (std.square() + (mean - prior_mean).square())
    return ((spread - 1 - precision.log()) / 2 - std.log()).sum()


def add_kl_gradients(
    mean_grads: list[Tensor],
    std_grads: list[Tensor],
    means: list[Tensor],
    stds: list[Tensor],
    prior_precision: float | list[Tensor],
    kl_weight: float,
) -> None:
    """Add `kl_weight` times the derivatives of `gaussian_kl` to gradients, in place; lists are of one tensor or many.

    Args:
        mean_grads: Gradients with respect to means.
        std_grads: Gradients with respect to standard deviations.
        means: Means of q, less those of the prior.
        stds: Standard deviations of q.
        prior_precision: Precision of the prior: one number, or for each tensor one that broadcasts to it.
        kl_weight: Weight of the KL divergence, summed over weights, beside a loss that is a mean over examples.
    """
    for grads, values in ((mean_grads, means), (std_grads, stds)):
        if isinstance(prior_precision, list):
            torch._foreach_addcmul_(grads, prior_precision, values, value=kl_weight)  # rounds as the line below
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
    """Turn gradients of the loss into those of the objective with respect to `mean` and `raw`, in place.

    This is the chain rule through w = mean + std noise. With g the gradient of the loss at w (dw / dmean = 1,
    dw / dstd = noise, dstd / draw = sigmoid(raw)):

        d/dmean = g + kl_weight dKL/dmean,    d/draw = (g noise + kl_weight dKL/dstd) sigmoid(raw)

    Where the standard deviation is held at `MIN_STD` the derivative is that of the softplus, so that it can grow.

    Source: Blundell et al. (ICML 2015), section 3.2.

    Args:
        grad: g, averaged over the sampled weights; becomes the derivative in `mean`.
        grad_times_noise: g times noise, averaged over the sampled weights; becomes the derivative in `raw`.
        mean: Means of q.
        raw: Standard deviations of q before the softplus.
        std: Standard deviations of q.
        prior_mean: Means of the prior; None for zero.
        prior_precision: Precision of the prior.
        kl_weight: Weight of the KL divergence, summed over weights, beside a loss that is a mean over examples.
    """
    distance = mean if prior_mean is None else mean - prior_mean
    precision = [prior_precision] if isinstance(prior_precision, Tensor) else prior_precision
    add_kl_gradients([grad], [grad_times_noise], [distance], [std], precision, kl_weight)
    grad_times_noise.mul_(torch.sigmoid(raw))


def check_variational_optimizer(
    optimizer: Optimizer, scales: Sequence[Tensor], prior_precision: PriorPrecision
) -> None:
    """Refuse an optimiser that would fit something else than the posterior.

    Args:
        optimizer: What was built over means and standard deviations.
        scales: The raw standard deviations.
        prior_precision: The prior that is there already.

    Raises:
        ValueError: It has a weight decay, which would be a second prior, or it leaves out the standard deviations.
    """
    decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
    if decay > 0:
        raise ValueError(
            f"The prior is given twice: prior_precision={prior_precision}, and an optimizer with "
            f"weight_decay={decay}, which would be a second prior on the means and one on the standard deviations. "
            "Set weight_decay=0 and choose prior_precision instead."
        )
    taken = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if any(id(scale) not in taken for scale in scales):
        raise ValueError(
            "The optimizer leaves out the standard deviations, so they would never be learnt. Build it over all the "
            "parameters it is given, also those that do not require a gradient, not over the model's."
        )
