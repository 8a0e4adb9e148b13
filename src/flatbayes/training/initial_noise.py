"""Standard deviation of the noise of a regression at the start of training: that of the residuals of a ridge fit.

    standardise inputs X, [n, d], and a target y, [n]; H(λ) = 11ᵀ / n + X (XᵀX + λ I)⁻¹ Xᵀ
    leave-one-out residual of example i: (y - H y)_i / (1 - H_ii)
    noise = root mean square of these residuals for the λ of a grid for which it is smallest

With too small a noise, the gradient of the Gaussian density, which grows with the inverse square of the noise,
is large at the start; with one that is too large, the optimizer spends its steps on it.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.data import LazyImages, Split
from flatbayes.likelihoods import Gaussian

MAX_ROWS = 1000
RIDGE_PENALTIES = tuple(10.0**k for k in range(-6, 3))
"""Candidates of λ / n."""
MIN_STD = 0.03
"""Smallest initial noise, as a fraction of the standard deviation of the target."""


def start_at_residuals(likelihood: Gaussian, train: Split) -> Gaussian:
    """The likelihood with a noise that starts at the residuals of a linear fit; unchanged for images.

    The likelihood is in the scale of the training targets.
    """
    inputs, targets = train.inputs, train.targets
    if isinstance(inputs, LazyImages) or inputs.ndim != 2 or len(inputs) < 3:
        return likelihood
    rows = torch.arange(0, len(inputs), -(-len(inputs) // MAX_ROWS))
    x, y = inputs[rows].double().cpu(), targets[rows].double().cpu().reshape(len(rows), -1)
    x, y = (standardize_columns(values) for values in (x, y))
    stds = compute_residual_stds(x, y).clamp(MIN_STD, 1.0)
    return replace(likelihood, initial_std=tuple(stds.tolist()))


def standardize_columns(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Columns with mean 0 and standard deviation 1; constant ones become 0."""
    centred = values - values.mean(0)
    std = centred.square().mean(0).sqrt()
    return torch.where(std > 1e-12 * values.abs().amax(0), centred / std, 0.0)


def compute_residual_stds(
    inputs: Float[Tensor, "rows features"], targets: Float[Tensor, "rows targets"]
) -> Float[Tensor, " targets"]:
    """Root mean square of the leave-one-out residuals of a ridge regression with the best penalty, for each target.

    Columns of inputs and targets have the mean 0.
    """
    num_rows, num_features = inputs.shape
    if num_features <= num_rows:
        values, vectors = torch.linalg.eigh(inputs.T @ inputs)
        is_kept = values > 1e-12 * values[-1].clamp_min(1e-300)
        values = values[is_kept]
        basis = inputs @ vectors[:, is_kept] / values.sqrt()
    else:
        values, basis = torch.linalg.eigh(inputs @ inputs.T)
        is_kept = values > 1e-12 * values[-1].clamp_min(1e-300)
        values, basis = values[is_kept], basis[:, is_kept]
    penalties = torch.tensor(RIDGE_PENALTIES, dtype=inputs.dtype) * num_rows
    shrinkage = values / (values + penalties[:, None])  # [penalties, rank]
    fits: Tensor = torch.einsum("nr,pr,rt->pnt", basis, shrinkage, basis.T @ targets)
    leverage = 1 / num_rows + shrinkage @ basis.square().T  # [penalties, rows]
    residuals: Tensor = (targets - fits) / (1 - leverage).clamp_min(1e-12)[:, :, None]
    return residuals.square().mean(1).sqrt().amin(0)
