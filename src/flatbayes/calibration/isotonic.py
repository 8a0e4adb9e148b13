"""Monotone calibration maps without a parametric form: isotonic for classes, of quantiles for numbers.

Classes (Zadrozny & Elkan, KDD 2002): the isotonic regression of the indicator of each class on its probability, one
class against the rest; the results are divided by their sum. To the n validation examples a further one is added
whose class has the probability that was predicted, so that no class gets probability 0, whose NLL would be infinite:

    p'_c  proportional to  (n iso_c(p_c) + p_c) / (n + 1)

Numbers (Kuleshov et al., ICML 2018): F' = R(F), with R the distribution function of the probabilities F_i(y_i) of
the validation targets, which is monotone already, so that its isotonic regression is itself. It is taken at sqrt(n)
levels and interpolated in normal scores, so that F' has a density, and finite quantiles beyond all targets.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.likelihoods import GaussianPredictive
from flatbayes.likelihoods.mixture import mixture_score

MIN_KNOT_DISTANCE = 1e-3
"""Smallest distance of knots in normal scores, so that targets that tie do not make an infinite density."""
Curves = list[tuple[list[float], list[float]]]
"""Knots and values of each class or target."""


def fit_isotonic(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> Curves:
    """Knots and values, from 0 to 1, of the map of each class before the division by the sum.

    Knots are numbers of single precision, since exported networks compute in it.
    """
    from sklearn.isotonic import IsotonicRegression  # slow to import

    probs, count, curves = log_probs.exp().clamp(0, 1).float().double(), len(labels), Curves()
    for k in range(probs.shape[1]):
        regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        regression.fit(probs[:, k].numpy(), (labels == k).double().numpy())
        inner = torch.as_tensor(regression.X_thresholds_, dtype=torch.float64)
        knots = torch.cat([inner.new_tensor([0.0, 1.0]), inner]).unique()
        fractions = torch.as_tensor(regression.predict(knots.numpy()), dtype=torch.float64)
        curves.append((knots.tolist(), ((count * fractions + knots) / (count + 1)).tolist()))
    return curves


def stack_curves(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[Tensor, Tensor]:
    """Knots and values as float64 tensors of the shape (classes, knots); short curves repeat their last point."""
    size = max(len(knots) for knots, _ in curves)

    def stack(rows: list[Sequence[float]]) -> Tensor:
        return torch.tensor([[*row, *[row[-1]] * (size - len(row))] for row in rows], dtype=torch.float64)

    return stack([knots for knots, _ in curves]), stack([values for _, values in curves])


def apply_isotonic(
    log_probs: Float[Tensor, "examples classes"],
    knots: Float[Tensor, "classes knots"],
    values: Float[Tensor, "classes knots"],
) -> Float[Tensor, "examples classes"]:
    """Log of the mapped probabilities, by operations that can be exported."""
    probs = log_probs.exp()
    total = values[:, 0].expand_as(probs)
    widths, rises = knots.diff(dim=1), values.diff(dim=1)
    for k in range(widths.shape[1]):
        width = torch.where(widths[:, k] > 0, widths[:, k], 1.0)
        total = total + rises[:, k] * ((probs - knots[:, k]) / width).clamp(0.0, 1.0)
    return total.log() - total.sum(-1, keepdim=True).log()


def fit_quantile_curves(predictive: GaussianPredictive, targets: Tensor) -> Curves:
    """Knots and values of g for each target: g maps quantiles of the observed normal scores to standard normal ones.

    The k-th of K = floor(sqrt(n)) levels is k / (K + 1); the observed quantile of a level q is the order statistic
    q (n + 1), interpolated.
    """
    shape = (len(predictive.member_means), len(targets), -1)
    means, stds = (
        values.detach().cpu().double().reshape(shape) for values in (predictive.member_means, predictive.member_stds)
    )
    scores = mixture_score(targets.detach().cpu().double().reshape(shape[1:]), means, stds).sort(0).values
    num_levels = max(1, math.isqrt(len(scores)))
    levels = torch.arange(1, num_levels + 1, dtype=torch.float64) / (num_levels + 1)
    values: list[float] = torch.special.ndtri(levels).tolist()
    position = levels * (len(scores) + 1) - 1  # an index from 0
    below = position.floor().long().clamp(0, len(scores) - 1)
    above = (below + 1).clamp_max(len(scores) - 1)
    quantiles = torch.lerp(scores[below], scores[above], (position - below)[:, None].expand(-1, scores.shape[1]))
    curves = Curves()
    for column in quantiles.T.tolist():
        knots = list[float]()
        for knot in column:
            knots.append(knot if not knots else max(knot, knots[-1] + MIN_KNOT_DISTANCE))
        curves.append((knots, values))
    return curves
