"""Metrics of the predictions of a `DistributionLikelihood`."""

import math
from typing import Any

from torch import Tensor

from flatbayes.likelihoods import DistributionPredictive
from flatbayes.metrics import metrics_per_target, regression_metrics


def measure_distribution(
    predictive: DistributionPredictive, targets: Tensor
) -> tuple[dict[str, float], dict[str, tuple[float, ...]], Tensor]:
    """Metrics of any distribution of numbers.

    Both ends belong to an interval of counts. A distribution without a finite mean has no RMSE and no CRPS, NaN.

    Returns:
        The metrics of `regression_metrics`; those of `metrics_per_target`, empty for one target; and values of the
        probability integral transform.
    """
    lower, upper = predictive.interval(0.95)
    has_mean, is_joint = bool(predictive.mean.isfinite().all()), targets.ndim == 2
    pit = predictive.probability_integral_transform(targets)
    quantities: dict[str, Any] = {
        "means": predictive.member_means,
        "stds": predictive.member_variances.sqrt(),
        "pit": pit,
        "interval": (lower, upper),
        "mean": predictive.mean if has_mean else predictive.quantile(0.5),
        "crps_values": predictive.crps(targets),
    }
    metrics = regression_metrics(targets, log_density=predictive.log_prob(targets), **quantities)
    by_target = metrics_per_target(targets, **quantities) if is_joint else {}
    if predictive.is_discrete:
        covered = ((targets >= lower) & (targets <= upper)).double().reshape(len(targets), -1).mean(0).tolist()
        metrics["coverage_95"] = sum(covered) / len(covered)
        by_target |= {"coverage_95": tuple(covered)} if is_joint else {}
    if not has_mean:
        metrics |= {"rmse": math.nan, "crps": math.nan}
        by_target |= {name: (math.nan,) * targets.shape[1] for name in ("rmse", "crps") if is_joint}
    return metrics, by_target, pit
