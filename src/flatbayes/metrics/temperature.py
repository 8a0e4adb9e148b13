"""Temperature scaling of class probabilities (Guo et al., ICML 2017).

p_T(c) is proportional to p(c)^(1 / T), where p is the *averaged* prediction of all networks (Ashukha et al., ICLR
2020). The accuracy does not change, and methods can be compared at their optimal temperature. T minimises the NLL of
validation examples, which is convex in 1 / T, so bisection of its slope finds the minimum.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.devices import to_double
from flatbayes.metrics.checks import check_log_probs

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Range of the search."""


def fit_temperature(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """The temperature T that minimises -mean_i log p_T,i(y_i), between 0.01 and 100.

    The result is an end of this range if the NLL still decreases there: the lower end if every prediction is right,
    the upper end if the predictions are no better than chance. It is 1 if all predictions are uniform.

    Args:
        log_probs: Log of the averaged probabilities, of validation examples; -inf stays -inf at every
            temperature.
        labels: Index of the true class.

    Raises:
        ValueError: The log probabilities or labels are invalid, or a label has probability 0.

    Examples:
        >>> log_probs = torch.tensor([[0.99, 0.01]]).repeat(10, 1).log()
        >>> temperature = fit_temperature(log_probs, torch.tensor([0] * 8 + [1] * 2))
        >>> apply_temperature(log_probs, temperature)[0].exp().round(
        ...     decimals=3
        ... )  # right in 8 of 10 cases
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    log_probs, labels = check_log_probs(log_probs, labels)
    label_log_probs = log_probs.gather(1, labels[:, None]).squeeze(1)
    impossible = int((label_log_probs == -math.inf).sum())
    if impossible:
        raise ValueError(
            f"{impossible} labels have probability 0, so the NLL is infinite at every temperature. Pass log "
            "probabilities computed by log_softmax and logsumexp, not the logarithm of rounded probabilities."
        )
    # Differences to the label's log probability keep the terms of the slope small for extreme predictions.
    margins = log_probs - label_log_probs[:, None]
    spread = margins[margins.isfinite()].abs().max()
    if float(spread) <= 1e-12:
        return 1.0
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if _nll_slope(margins, low) >= 0:
        return MAX_TEMPERATURE
    if _nll_slope(margins, high) <= 0:
        return MIN_TEMPERATURE
    while True:
        middle = math.sqrt(low * high)
        if not low < middle < high:
            return 1 / middle
        low, high = (middle, high) if _nll_slope(margins, middle) < 0 else (low, middle)


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
    return (to_double(log_probs.detach()) / temperature).log_softmax(-1)


def _nll_slope(margins: Tensor, inverse_temperature: float) -> float:
    """Derivative of the NLL with respect to 1 / T: the mean over examples of sum_c p_T(c) (log p(c) - log p(y))."""
    probs = (inverse_temperature * margins).softmax(-1)
    return float((probs * margins.clamp_min(-1e300)).sum(-1).mean())
