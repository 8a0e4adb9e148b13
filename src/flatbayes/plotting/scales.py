"""Labels of metrics with their units, and the rule for logarithmic axes."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    from matplotlib.axis import Axis

__all__ = ["label_metric", "needs_log_scale", "scale_axis"]

LOG_RATIO = 10.0
"""An axis is logarithmic where the largest value is more than this many times the smallest."""
WIDE_LOG_RATIO = 100.0
"""From this ratio on only powers of ten are labelled."""

METRIC_LABELS = {
    "nll": "NLL in nats",
    "nll_scaled": "NLL in nats, temperature scaled",
    "nll_calibrated": "NLL in nats, temperature scaled, cross-fitted",
    "dee": "deep-ensemble equivalent",
    "agreement": "agreement with the plain reference",
    "agreement_flat": "agreement with the flat reference",
    "tv": "total variation to the plain reference",
    "tv_flat": "total variation to the flat reference",
    "w1": "distance to the plain reference, target's unit",
    "w1_flat": "distance to the flat reference, target's unit",
    "ece": "ECE",
    "ece_scaled": "ECE, temperature scaled",
    "adaptive_ece": "adaptive ECE",
    "classwise_ece": "classwise ECE",
    "brier": "Brier score",
    "auroc_correct": "AUROC of correct against wrong",
    "aurc": "AURC",
    "rmse": "RMSE in the target's unit",
    "crps": "CRPS in the target's unit",
    "coverage_95": "coverage of the 95 % interval",
    "width_95": "width of the 95 % interval, target's unit",
    "shift_accuracy": "accuracy on corrupted images",
    "shift_nll": "NLL on corrupted images, in nats",
    "shift_ece": "ECE on corrupted images",
    "ood_auroc": "AUROC of out-of-distribution inputs",
    "ood_aupr": "AUPR of out-of-distribution inputs",
    "ood_fpr95": "FPR at 95 % detected",
    "ood_auroc_mi": "AUROC by mutual information",
    "train_loss": "training loss in nats",
    "gap_one_step": "rise after one ascent step, in nats",
    "gap_worst": "rise to the worst point, in nats",
    "gap_average": "mean rise, in nats",
    "gap_adaptive": "rise in the adaptive ball, in nats",
    "top_eigenvalue": "largest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
}
"""Axis labels of metrics whose name alone is not clear or lacks the unit."""


def label_metric(metric: str) -> str:
    """Label of an axis that shows a metric, with its unit.

    Examples:
        >>> label_metric("nll"), label_metric("my_own_metric")
        ('NLL in nats', 'my own metric')
    """
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def needs_log_scale(values: Iterable[float]) -> bool:
    """Whether values belong on a logarithmic axis: all positive, and the largest over `LOG_RATIO` times the smallest.

    Values that are not finite are left out.

    Examples:
        >>> needs_log_scale([0.01, 0.2, 3.0]), needs_log_scale([1.0, 9.0])
        (True, False)
    """
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > LOG_RATIO * min(finite)


def scale_axis(axis: "Axis", values: Iterable[float], num_ticks: int = 4) -> None:
    """Set scale, ticks and, on a logarithmic axis, limits by the range of the values.

    Args:
        axis: The x axis or the y axis of axes.
        values: The values that are drawn on it.
        num_ticks: Largest number of intervals between ticks of a linear axis.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> scale_axis(axes.yaxis, [0.01, 0.2, 3.0])
        >>> axes.get_yscale()
        'log'
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    finite = [value for value in values if math.isfinite(value)]
    if not needs_log_scale(finite):
        axis.set_major_locator(MaxNLocator(num_ticks, min_n_ticks=2))
        return
    low, high = min(finite), max(finite)
    name = "x" if axis is axis.axes.xaxis else "y"
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low / 1.3, high * 1.3)})
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > WIDE_LOG_RATIO * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
