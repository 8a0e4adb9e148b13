"""How well the chains of a reference have mixed."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat

MAX_R_HAT = 1.1
"""Largest split R-hat of predicted quantities with which chains count as mixed."""
MAX_ASCENT_RESIDUAL = 0.3
"""Largest mean residual with which the end of an ascent counts as a maximum."""
MAX_MIXING_QUANTITIES = 200
"""Largest number of predicted quantities whose R-hat and effective sample size are computed."""


@dataclass(frozen=True)
class ReferenceDiagnostics:
    """How well the chains of a reference have mixed.

    Attributes:
        r_hat_max: Largest split R-hat (rank-normalised) over predicted quantities; below about 1.05 is good.
        r_hat_median: Their median.
        ess_min: Smallest effective sample size over predicted quantities.
        ess_median: Their median.
        step_sizes: Tuned step size of each chain.
        decoherence_lengths: Tuned decoherence length of each chain; of MCLMC.
        energy_variances: Variance of the energy error for each weight, by chain; of MCLMC.
        acceptances: Mean probability of acceptance by chain; of HMC.
        mean_potentials: Mean of -log density of each chain after tuning, up to a constant.
        num_divergent: Steps after tuning whose energy was not finite, over all chains.
        ascent_residual: Mean sine of the angle between the perturbation and the gradient at it; 0 at an exact
            maximum, None without a radius.
        num_gradients: Gradients of all training examples, over all chains.
        seconds: Wall-clock time.

    Examples:
        >>> diagnostics = sample_reference(MLP, data, reference_config).diagnostics
        >>> len(diagnostics.step_sizes), diagnostics.num_divergent
        (2, 0)
    """

    r_hat_max: float | None
    r_hat_median: float | None
    ess_min: float | None
    ess_median: float | None
    step_sizes: tuple[float, ...] = ()
    decoherence_lengths: tuple[float | None, ...] = ()
    energy_variances: tuple[float | None, ...] = ()
    acceptances: tuple[float, ...] = ()
    mean_potentials: tuple[float, ...] = ()
    num_divergent: int = 0
    ascent_residual: float | None = None
    num_gradients: int = 0
    seconds: float = 0.0

    def list_problems(self) -> list[str]:
        """Why the draws may not be those of the density, each with what to do; empty if nothing is known."""
        problems = []
        lower_radius = "" if self.ascent_residual is None else ", or lower rho"
        remedy = f"raise num_steps and num_tuning_steps{lower_radius}"
        if self.r_hat_max is None:
            problems.append(f"all its draws predict the same, so that R-hat is undefined: {remedy}")
        elif self.r_hat_max > MAX_R_HAT:
            problems.append(
                f"its chains have not mixed (largest R-hat {self.r_hat_max:.4g}, above {MAX_R_HAT}): {remedy}"
            )
        if self.ascent_residual is not None and self.ascent_residual > MAX_ASCENT_RESIDUAL:
            problems.append(
                f"its ascent ends far from the maximum (residual {self.ascent_residual:.4g}, above "
                f"{MAX_ASCENT_RESIDUAL}): raise ascent_steps, or lower rho"
            )
        return problems

    __repr__ = format_fields


def measure_mixing(predictions: Float[Tensor, "chains draws quantities"]) -> dict[str, float | None]:
    """Largest and median R-hat, smallest and median effective sample size of predicted quantities.

    Evenly spaced ones are used if there are many.

    Returns:
        Values by the names of `ReferenceDiagnostics`; None where all draws are equal.
    """
    count = predictions.shape[-1]
    columns = torch.linspace(0, count - 1, min(count, MAX_MIXING_QUANTITIES)).long()
    chains = [predictions[..., column] for column in columns]
    r_hats = [value for chain in chains if math.isfinite(value := split_r_hat(chain, rank_normalized=True))]
    sizes = [value for chain in chains if math.isfinite(value := effective_sample_size(chain))]
    return {
        "r_hat_max": max(r_hats, default=None),
        "r_hat_median": float(torch.tensor(r_hats).median()) if r_hats else None,
        "ess_min": min(sizes, default=None),
        "ess_median": float(torch.tensor(sizes).median()) if sizes else None,
    }
