"""Sharpness, Hessian spectrum, loss landscape, evidence and mixing of fitted posteriors; nothing is modified."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.diagnostics.evidence import Evidence, compute_evidence, estimate_evidence
from flatbayes.diagnostics.flatness_forecast import FlatnessForecast, forecast_flatness, forecast_from_history
from flatbayes.diagnostics.hessian import (
    Curvature,
    HessianVectorProduct,
    compute_curvature,
    estimate_trace,
    largest_eigenvalues,
)
from flatbayes.diagnostics.landscape import (
    LossGrid,
    LossSlice,
    Plane,
    loss_along,
    loss_at,
    loss_over,
    plane_through,
    random_direction,
)
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat
from flatbayes.diagnostics.posterior_landscape import compute_draw_slices, compute_solution_plane
from flatbayes.diagnostics.posterior_sharpness import (
    SHARPNESS_MEASURES,
    PosteriorSharpness,
    compare_sharpness,
    measure_posterior_sharpness,
)
from flatbayes.diagnostics.sharpness import (
    Sharpness,
    SharpnessConfig,
    adaptive_gap,
    average_gap,
    measure_sharpness,
    one_step_gap,
    worst_gap,
)

__all__ = [
    "SHARPNESS_MEASURES",
    "Curvature",
    "Evidence",
    "FlatnessForecast",
    "HessianVectorProduct",
    "LossGrid",
    "LossSlice",
    "LossSurface",
    "Plane",
    "PosteriorSharpness",
    "Sharpness",
    "SharpnessConfig",
    "adaptive_gap",
    "average_gap",
    "compare_sharpness",
    "compute_curvature",
    "compute_draw_slices",
    "compute_evidence",
    "compute_solution_plane",
    "effective_sample_size",
    "estimate_evidence",
    "estimate_trace",
    "forecast_flatness",
    "forecast_from_history",
    "largest_eigenvalues",
    "loss_along",
    "loss_at",
    "loss_over",
    "measure_posterior_sharpness",
    "measure_sharpness",
    "one_step_gap",
    "plane_through",
    "random_direction",
    "split_r_hat",
    "worst_gap",
]

explain_old_arguments(__name__)
