"""Exact posteriors on grids, closed forms for quadratic losses, and PAC-Bayes bounds.

The package is an oracle for tests of the rest of flatbayes and shares no code with it.
"""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.theory.approximation import (
    BestGaussian,
    best_gaussian,
    worst_expected_loss,
    worst_expected_loss_gradient,
    worst_loss_expectation,
    worst_loss_expectation_gradient,
)
from flatbayes.theory.divergences import (
    PriorScale,
    binary_kl,
    gaussian_kl,
    inverse_kl,
    prior_scale_grid,
    select_prior_scale,
)
from flatbayes.theory.gibbs import (
    flatness_identity,
    gibbs_posterior,
    mean_sharpness,
    sharpness_aware_posterior,
    variational_objective,
    worst_loss,
)
from flatbayes.theory.grid import (
    GridPosterior,
    grid_kl,
    grid_points,
    jeffreys_divergence,
    normalize_density,
    sample_cells,
)
from flatbayes.theory.pac_bayes import (
    Certificate,
    betting_mean_bound,
    compute_certificate,
    compute_certificate_from_draws,
    gibbs_error_bound,
    holdout_bound,
    norm_tail_probability,
    sharpness_bound,
)
from flatbayes.theory.quadratic import (
    CuspPosterior,
    isotropic_worst_loss,
    quadratic_posterior,
    quadratic_worst_loss,
    soft_worst_loss,
    well_odds,
    worst_perturbation,
)

__all__ = [
    "BestGaussian",
    "Certificate",
    "CuspPosterior",
    "GridPosterior",
    "PriorScale",
    "best_gaussian",
    "betting_mean_bound",
    "binary_kl",
    "compute_certificate",
    "compute_certificate_from_draws",
    "flatness_identity",
    "gaussian_kl",
    "gibbs_error_bound",
    "gibbs_posterior",
    "grid_kl",
    "grid_points",
    "holdout_bound",
    "inverse_kl",
    "isotropic_worst_loss",
    "jeffreys_divergence",
    "mean_sharpness",
    "norm_tail_probability",
    "normalize_density",
    "prior_scale_grid",
    "quadratic_posterior",
    "quadratic_worst_loss",
    "sample_cells",
    "select_prior_scale",
    "sharpness_aware_posterior",
    "sharpness_bound",
    "soft_worst_loss",
    "variational_objective",
    "well_odds",
    "worst_expected_loss",
    "worst_expected_loss_gradient",
    "worst_loss",
    "worst_loss_expectation",
    "worst_loss_expectation_gradient",
    "worst_perturbation",
]

explain_old_arguments(__name__)
