"""The density that a posterior approximates, compared with that of a reference."""

import math

from flatbayes.posteriors import BLoB, Ensemble, Laplace, Posterior
from flatbayes.posteriors.optimization import find_weight_decay, resolve_temperature
from flatbayes.reference.result import Reference
from flatbayes.training import TrainingConfig

TOLERANCE = 1e-6
"""Relative difference of prior precisions and temperatures that counts as rounding."""


class ReferenceWarning(UserWarning):
    """A posterior is compared with a reference of another density."""


def find_density(posterior: Posterior, config: TrainingConfig, num_data: int) -> tuple[float | None, float]:
    """Prior precision and temperature of the density that a posterior approximates.

    Of an ensemble its member counts; the weight decay of the training can be the prior.

    Returns:
        The precision, None where it is not one number for all weights, or is chosen after training; and the
        temperature, 1 for a posterior that has none.
    """
    while isinstance(posterior, Ensemble):
        posterior = posterior.member
    temperature = resolve_temperature(getattr(posterior, "temperature", None))
    if isinstance(posterior, BLoB):
        return posterior.prior_std**-2, temperature
    if isinstance(posterior, Laplace) and posterior.tune == "evidence":
        return None, temperature
    precision = getattr(posterior, "prior_precision", None)
    if isinstance(precision, int | float):
        return float(precision), temperature
    if precision is not None:
        return None, temperature
    try:
        weight_decay = find_weight_decay(config.optimizer or posterior.default_optimizer)
    except Exception:  # of the user's function, which takes the parameters apart
        return None, temperature
    return weight_decay * num_data / temperature, temperature


def explain_density_mismatch(reference: Reference, posterior: Posterior, config: TrainingConfig) -> str | None:
    """What differs between the density of a posterior and that of a reference; None if they agree."""
    precision, temperature = find_density(posterior, config, reference.num_data)
    reasons, expected = [], reference.config.prior_precision
    if precision is None:
        reasons.append(f"their prior has other precisions than {expected:g} for all weights")
    elif not math.isclose(precision, expected, rel_tol=TOLERANCE):
        reasons.append(f"their prior precision is {precision:.4g}, and that of the reference {expected:.4g}")
    if not math.isclose(temperature, reference.config.temperature, rel_tol=TOLERANCE):
        reasons.append(
            f"their temperature is {temperature:g}, and that of the reference {reference.config.temperature:g}"
        )
    return "; ".join(reasons) or None
