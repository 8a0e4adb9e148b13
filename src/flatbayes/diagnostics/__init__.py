"""Read-only views of what was fitted."""

from flatbayes.diagnostics.hessian import Curvature, HessianProducts, curvature, hutchinson, largest_eigenvalues
from flatbayes.diagnostics.landscape import (
    Grid,
    Plane,
    Slice,
    loss_along,
    loss_at,
    loss_over,
    plane_through,
    random_direction,
    random_plane,
)
from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat
from flatbayes.diagnostics.posterior import (
    MEASURES,
    PosteriorSharpness,
    compare_sharpness,
    posterior_sharpness,
)
from flatbayes.diagnostics.sharpness import (
    Probe,
    Sharpness,
    adaptive_gap,
    average_gap,
    network_sharpness,
    one_step_gap,
    worst_gap,
)
from flatbayes.diagnostics.surface import LossSurface
from flatbayes.diagnostics.views import plane_of_solutions, slices_of_draws

__all__ = [
    "MEASURES",
    "Curvature",
    "Grid",
    "HessianProducts",
    "LossSurface",
    "Plane",
    "PosteriorSharpness",
    "Probe",
    "Sharpness",
    "Slice",
    "adaptive_gap",
    "average_gap",
    "compare_sharpness",
    "curvature",
    "effective_sample_size",
    "hutchinson",
    "largest_eigenvalues",
    "loss_along",
    "loss_at",
    "loss_over",
    "network_sharpness",
    "one_step_gap",
    "plane_of_solutions",
    "plane_through",
    "posterior_sharpness",
    "random_direction",
    "random_plane",
    "slices_of_draws",
    "split_r_hat",
    "worst_gap",
]
