"""Published methods whose hyperparameters depend on each other or on the data."""

import math

from flatbayes.flatness import GaussianSmoothing
from flatbayes.posteriors import SGLD, BLoB
from flatbayes.posteriors.optimization import check_temperature


def make_fsgld(
    num_data: int, temperature: float = 1e-4, *, exponent: float = 0.1, prior_precision: float | None = None
) -> tuple[SGLD, GaussianSmoothing]:
    """Flatness-aware Langevin dynamics (fSGLD, arXiv 2510.02174): SGLD on the loss smoothed by Gaussian noise.

    The noise of the smoothing follows the temperature, so that the chain samples near the flattest minima. The step
    is w - lr (gradient of L at w + std xi) + sqrt(2 lr T / n) xi', one gradient.

    Args:
        num_data: Number of training examples.
        temperature: T of the posterior; that of the authors by default.
        exponent: The exponent c of the coupling; see `smoothing_std`.
        prior_precision: Precision of a Gaussian prior; None for the optimizer's weight decay.

    Returns:
        Posterior and flatness, for `fit`.

    Raises:
        ValueError: The temperature is not positive.

    Examples:
        >>> posterior, flatness = make_fsgld(num_data=500, temperature=0.01)
        >>> round(flatness.std, 4)
        0.051
        >>> fitted = fit(MLP, data, posterior, flatness, config)
    """
    std = smoothing_std(num_data, temperature, exponent)
    return SGLD(prior_precision=prior_precision, temperature=temperature), GaussianSmoothing(std=std)


def make_blob(num_data: int, batch_size: int, *, gamma: float = 8.0) -> BLoB:
    """BLoB as published: the KL divergence has steps of its own, whose weights rise in cycles.

    The cycle has M = 100 num_data^(pi / gamma) / batch_size steps. The average weight is about 1 / (2 M), where that
    of the evidence lower bound is 1 / num_data: a temperature of num_data / (2 M).

    Args:
        num_data: Number of training examples.
        batch_size: Examples of a batch.
        gamma: The exponent's denominator.

    Examples:
        >>> make_blob(num_data=640, batch_size=4).kl_cycle
        316
    """
    return BLoB(kl_lr=0.01, kl_cycle=max(1, int(100 * num_data ** (math.pi / gamma) / batch_size)))


def smoothing_std(num_data: int, temperature: float, exponent: float = 0.1) -> float:
    """Return beta^(-(1 + exponent) / 4), with beta = num_data / temperature of the density exp(-beta L).

    Raises:
        ValueError: The temperature is not positive.

    Examples:
        >>> round(smoothing_std(50_000, 1.0), 4)
        0.051
    """
    check_temperature(temperature)
    return float((num_data / temperature) ** (-(1 + exponent) / 4))
