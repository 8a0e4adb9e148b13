"""Targets in another unit than a Gaussian likelihood expects, as the cause of a training that diverged."""

import torch
from torch import Tensor

from flatbayes.core.display import format_number
from flatbayes.likelihoods import Gaussian, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom

MAX_STANDARDIZED_TARGET = 20.0
"""Largest median of the absolute standardized targets that are no cause of a divergence."""


def suggest_standardization(likelihood: Likelihood, targets: Tensor) -> str | None:
    """A remedy where targets are far from those that a Gaussian likelihood expects; None where they are not."""
    gaussian = unwrap_custom(likelihood)
    if not isinstance(gaussian, Gaussian) or not targets.numel():
        return None
    rows = targets.detach().double().cpu().reshape(len(targets), -1)
    location, scale = (torch.tensor(values, dtype=torch.float64) for values in (gaussian.location, gaussian.scale))
    sizes = ((rows - location) / scale).abs().median(0).values
    target = int(sizes.argmax())
    if not sizes[target] > MAX_STANDARDIZED_TARGET:
        return None
    expected = [format_number(float(values[target])) for values in (location, scale)]
    which = "one" if rows.shape[1] == 1 else f"one of target {target}, counted from 0,"
    return (
        f"likelihood=Gaussian.fit(targets), which standardizes the targets ({which} is "
        f"{format_number(float(rows[0, target]))}, and {type(gaussian).__name__} expects values around {expected[0]} "
        f"with a standard deviation of {expected[1]})"
    )
