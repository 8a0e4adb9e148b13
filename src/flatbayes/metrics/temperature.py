"""Temperature scaling of class probabilities (Guo et al., ICML 2017).

p_T(c) is proportional to p(c)^(1 / T), where p is the *averaged* prediction of all networks (Ashukha et al., ICLR
2020). The accuracy does not change, and methods can be compared at their optimal temperature. T minimises the NLL of
validation examples, which is convex in 1 / T, so that the minimum is the root of its slope (Brent's method).

Without a mistake among the examples the NLL has no minimum: T is 0. Therefore T has a prior: k more examples, the
n examples with the weight k / n and with labels that are drawn from the predictions at T = 1. With the slope S of
the NLL in 1 / T, the slope of their NLL is S(1 / T) - S(1), and the minimum is where S(1 / T) = k / (n + k) S(1).
To the log odds of examples that are all right, T then adds at most about log(1 + n / k).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.devices import has_float64, iter_row_blocks
from flatbayes.core.names import format_count
from flatbayes.metrics.checks import iter_log_probs

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Range of the search."""
ROOT_TOLERANCE = 1e-15
"""Error of the logarithm of the temperature."""
PRIOR_EXAMPLES = 1.0
"""Weight of the prior in examples. Of 200 examples it changes a temperature between 1/3 and 3 by less than 3 %."""


def fit_temperature(
    log_probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    prior_examples: float = PRIOR_EXAMPLES,
) -> float:
    """The temperature T that minimises -mean_i log p_T,i(y_i), with a weak prior around 1, between 0.01 and 100.

    The result is an end of this range if the NLL still decreases there: the upper end if the predictions are no
    better than chance, the lower end, without the prior, if every prediction is right. It is 1 if all predictions are
    uniform.

    Args:
        log_probs: Log of the averaged probabilities, of validation examples; -inf stays -inf at every
            temperature.
        labels: Index of the true class.
        prior_examples: Weight of the prior: examples whose labels are drawn from the predictions. 0 gives the maximum
            of the likelihood.

    Raises:
        ValueError: The log probabilities or labels are invalid, or a label has probability 0.

    Examples:
        >>> log_probs = torch.tensor([[0.99, 0.01]]).repeat(10, 1).log()
        >>> temperature = fit_temperature(
        ...     log_probs, torch.tensor([0] * 8 + [1] * 2), prior_examples=0
        ... )
        >>> apply_temperature(log_probs, temperature)[0].exp().round(
        ...     decimals=3
        ... )  # right in 8 of 10 cases
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    from scipy.optimize import brentq  # slow to import

    impossible, spread = 0, 0.0
    for _, block, _, block_labels in iter_log_probs(log_probs, labels):
        margins = block - block.gather(1, block_labels[:, None])
        impossible += int((~(margins < math.inf)).any(1).sum())  # minus the log of 0: inf, or NaN
        spread = max(spread, float(margins.masked_fill_(block == -math.inf, 0.0).abs().max()))
    if impossible:
        raise ValueError(
            f"{format_count(impossible, 'label has', 'labels have')} probability 0, so the NLL is infinite at every "
            "temperature. Pass log probabilities computed by log_softmax and logsumexp, not the logarithm of rounded "
            "probabilities."
        )
    if spread <= 1e-12:
        return 1.0
    log_probs, labels = log_probs.detach().cpu(), labels.detach().cpu()

    initial_slope = nll_slope(log_probs, labels, 1.0)
    prior_slope = prior_examples / (len(labels) + prior_examples) * initial_slope
    if initial_slope == 0:
        return 1.0

    def slope(log_inverse_temperature: float) -> float:
        return nll_slope(log_probs, labels, math.exp(log_inverse_temperature)) - prior_slope

    # The interval grows from a temperature of 1, near which most minima are.
    direction = 1 if initial_slope < 0 else -1
    limit = -math.log(MIN_TEMPERATURE if direction > 0 else MAX_TEMPERATURE)
    near, far = 0.0, 0.5 * direction
    while slope(far) * direction <= 0:
        if far == limit:
            return MIN_TEMPERATURE if direction > 0 else MAX_TEMPERATURE
        near, far = far, 3 * far if abs(3 * far) < abs(limit) else limit
    return math.exp(-brentq(slope, near, far, xtol=ROOT_TOLERANCE, rtol=ROOT_TOLERANCE))


def apply_temperature(
    log_probs: Float[Tensor, "examples classes"], temperature: float
) -> Float[Tensor, "examples classes"]:
    """Log probabilities at a temperature: log_softmax(log_probs / T), float64.

    Args:
        log_probs: Log probabilities.
        temperature: Above 1 flattens, below 1 sharpens.

    Raises:
        ValueError: The temperature is not positive and finite.

    Examples:
        >>> import torch
        >>> apply_temperature(torch.tensor([[0.8, 0.2]]).log(), 0.5).exp().round(decimals=3)
        tensor([[0.9410, 0.0590]], dtype=torch.float64)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"A temperature must be positive and finite, got {temperature}. A temperature of 1 has no effect."
        )
    log_probs = log_probs.detach() if has_float64(log_probs) else log_probs.detach().cpu()
    scaled = torch.empty(log_probs.shape, dtype=torch.float64, device=log_probs.device)
    for rows in iter_row_blocks(log_probs):
        torch.log_softmax(log_probs[rows].double() / temperature, -1, out=scaled[rows])
    return scaled


def nll_slope(log_probs: Tensor, labels: Tensor, inverse_temperature: float) -> float:
    """Derivative of the NLL with respect to 1 / T: the mean over examples of sum_c p_T(c) (log p(c) - log p(y))."""
    slopes = torch.empty(len(labels), dtype=torch.float64)
    for rows in iter_row_blocks(log_probs):
        block = log_probs[rows].double()
        # Differences to the label's log probability keep the terms of the slope small for extreme predictions.
        margins = block - block.gather(1, labels[rows, None])
        exps = (inverse_temperature * (block - block.amax(-1, keepdim=True))).exp_()
        products = (exps * margins.clamp_min_(-1e300)).sum(-1)
        slopes[rows] = products / exps.sum(-1)
    return float(slopes.mean())
