"""Definition and direction of every metric that a comparison reports."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class MetricDefinition(NamedTuple):
    """One line on a metric, for reports.

    Attributes:
        text: Name, definition and unit.
        higher_is_better: Direction; None if neither high nor low values are better.

    Examples:
        >>> MetricDefinition("Mean entropy in nats", higher_is_better=None).text
        'Mean entropy in nats'
    """

    text: str
    higher_is_better: bool | None = False


class MetricFamily(StrEnum):
    """Tables of metrics beside the usual ones.

    Examples:
        >>> sorted(METRIC_FAMILIES[MetricFamily.OOD])[:2]
        ['ood_aupr', 'ood_auroc']
    """

    RANKING = "Ranking of two classes"
    LIKELIHOOD = "Calibrated likelihood"
    REFERENCE = "Distance to the exact posterior"
    CALIBRATION = "Calibration"
    SHIFT = "Shift"
    OOD = "Out-of-distribution detection"
    SHARPNESS = "Sharpness"


CLASSIFICATION_METRICS: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        "accuracy": MetricDefinition("Accuracy: fraction of examples whose most probable class is the label", True),
        "nll": MetricDefinition("NLL: mean negative log probability of the label, in nats"),
        "ece": MetricDefinition("ECE: 20 equal-width bins (a, b] of the top probability"),
        "brier": MetricDefinition(
            "Brier score: squared error of the probabilities, summed over the classes, from 0 to 2"
        ),
        "auroc_correct": MetricDefinition(
            "AUROC (correct): separation of right and wrong predictions by the top probability", True
        ),
    }
)
"""Metrics of `classification_metrics`, in its order."""

BINARY_METRICS: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        "auroc": MetricDefinition("AUROC of the second of two classes by its probability", True),
        "aupr": MetricDefinition("Average precision of the second of two classes", True),
    }
)
"""Metrics that `evaluate` adds to those of a classification with two classes."""

DENSE_METRICS: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        **CLASSIFICATION_METRICS,
        "accuracy": MetricDefinition(
            "Accuracy: fraction of labelled positions whose most probable class is the label", True
        ),
        "mean_iou": MetricDefinition(
            "Mean IoU: intersection over union of labelled and predicted positions, mean over the classes", True
        ),
    }
)
"""Metrics of a class at each position: those of a classification, of all labelled positions, and `mean_iou`."""

MULTI_LABEL_METRICS: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        "accuracy": MetricDefinition("Accuracy: fraction of labels that are predicted right, 1 - Hamming loss", True),
        "exact_match": MetricDefinition("Exact match: fraction of examples all of whose labels are right", True),
        "nll": MetricDefinition("NLL: mean negative log probability of the labels of an example, summed, in nats"),
        "ece": MetricDefinition(
            "ECE: 20 equal-width bins (a, b] of the probability of the likelier value of a label"
        ),
        "brier": MetricDefinition(
            "Brier score: squared error of the probabilities of a label, summed over its values, from 0 to 2"
        ),
        "macro_auroc": MetricDefinition("AUROC of each label by its probability, mean over the labels", True),
        "macro_aupr": MetricDefinition("Average precision of each label, mean over the labels", True),
    }
)
"""Metrics of `multi_label_metrics`, in its order."""

REGRESSION_METRICS: Mapping[str, MetricDefinition] = MappingProxyType(
    {
        "nll": MetricDefinition(
            "NLL: mean negative log density of the target under the mixture, in nats, in the target's unit"
        ),
        "rmse": MetricDefinition("RMSE: root mean squared error of the predicted mean, in the target's unit"),
        "crps": MetricDefinition("CRPS: continuous ranked probability score of the mixture, in the target's unit"),
        "miscalibration": MetricDefinition(
            "Miscalibration: mean |coverage - level| of central intervals, levels .05 to .95"
        ),
        "coverage_95": MetricDefinition("Coverage: fraction of targets inside the central 95 % interval", None),
        "width_95": MetricDefinition("Width: mean width of the central 95 % interval, in the target's unit", None),
    }
)
"""Metrics of `regression_metrics`, in its order."""

METRIC_FAMILIES: Mapping[MetricFamily, Mapping[str, MetricDefinition]] = MappingProxyType(
    {
        MetricFamily.RANKING: BINARY_METRICS,
        MetricFamily.LIKELIHOOD: MappingProxyType(
            {
                "nll_calibrated": MetricDefinition(
                    "NLL after temperature scaling, each half of the examples at the best temperature of the other"
                ),
                "dee": MetricDefinition(
                    "Deep-ensemble equivalent: number of plain ensemble members of the same calibrated likelihood",
                    True,
                ),
            }
        ),
        MetricFamily.REFERENCE: MappingProxyType(
            {
                "agreement": MetricDefinition(
                    "Fraction of examples with the most probable class of the plain reference posterior", True
                ),
                "tv": MetricDefinition("Total variation distance to the plain reference posterior"),
                "w1": MetricDefinition(
                    "1-Wasserstein distance to the plain reference posterior, in the target's unit"
                ),
                "agreement_flat": MetricDefinition(
                    "Fraction of examples with the most probable class of the sharpness-aware reference posterior",
                    True,
                ),
                "tv_flat": MetricDefinition("Total variation distance to the sharpness-aware reference posterior"),
                "w1_flat": MetricDefinition(
                    "1-Wasserstein distance to the sharpness-aware reference posterior, in the target's unit"
                ),
            }
        ),
        MetricFamily.CALIBRATION: MappingProxyType(
            {
                "nll_scaled": MetricDefinition("NLL after temperature scaling on the validation split, in nats"),
                "ece_scaled": MetricDefinition("ECE after temperature scaling on the validation split"),
                "adaptive_ece": MetricDefinition("ECE with bins of equally many predictions"),
                "classwise_ece": MetricDefinition("ECE of each class's probability, averaged over classes"),
                "aurc": MetricDefinition("AURC: error rate of the retained predictions, averaged over coverage"),
            }
        ),
        MetricFamily.SHIFT: MappingProxyType(
            {
                "shift_accuracy": MetricDefinition(
                    "Accuracy on corrupted images, averaged over corruptions and severities", True
                ),
                "shift_nll": MetricDefinition("NLL on corrupted images, averaged over corruptions and severities"),
                "shift_ece": MetricDefinition("ECE on corrupted images, averaged over corruptions and severities"),
            }
        ),
        MetricFamily.OOD: MappingProxyType(
            {
                "ood_auroc": MetricDefinition(
                    "AUROC of out-of-distribution against test inputs by the entropy of the prediction", True
                ),
                "ood_aupr": MetricDefinition("AUPR of the same, out-of-distribution inputs positive", True),
                "ood_fpr95": MetricDefinition(
                    "Fraction of test inputs above the entropy that 95 % of the out-of-distribution inputs exceed"
                ),
                "ood_auroc_mi": MetricDefinition(
                    "AUROC of out-of-distribution against test inputs by mutual information", True
                ),
            }
        ),
        MetricFamily.SHARPNESS: MappingProxyType(
            {
                "train_loss": MetricDefinition("Loss on training examples at draws of the posterior"),
                "gap_one_step": MetricDefinition("Rise of the training loss after one ascent step, mean over draws"),
                "gap_worst": MetricDefinition("Rise to the worst point found in the ball, mean over draws"),
                "gap_average": MetricDefinition("Mean rise over random points at the same distance, mean over draws"),
                "gap_adaptive": MetricDefinition("Rise in a ball that scales with the weights, mean over draws"),
                "top_eigenvalue": MetricDefinition("Largest eigenvalue of the Hessian, mean over draws"),
                "trace": MetricDefinition("Trace of the Hessian, mean over draws"),
            }
        ),
    }
)
"""Metrics of each family by name."""

_ALL_METRICS = {
    name: definition
    for metrics in (
        CLASSIFICATION_METRICS,
        DENSE_METRICS,
        MULTI_LABEL_METRICS,
        CLASSIFICATION_METRICS,
        REGRESSION_METRICS,
        *METRIC_FAMILIES.values(),
    )
    for name, definition in metrics.items()
}
"""Metrics of classes stand for those of several labels with the same name."""

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        name: definition.higher_is_better
        for name, definition in _ALL_METRICS.items()
        if definition.higher_is_better is not None
    }
)
"""Direction of each metric that has one."""

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        **{name: definition.text for name, definition in _ALL_METRICS.items()},
        "nll": "NLL: mean negative log probability of the label, or log density of a number in its unit, in nats",
    }
)
"""One line on each metric."""


def select_definitions(metrics: Collection[str]) -> Mapping[str, str]:
    """One line on each metric; those of several labels or positions, which share names with others, where they are.

    Examples:
        >>> select_definitions(MULTI_LABEL_METRICS)["accuracy"]
        'Accuracy: fraction of labels that are predicted right, 1 - Hamming loss'
    """
    for special in (MULTI_LABEL_METRICS, DENSE_METRICS):
        if set(special) <= set(metrics):
            return {**DEFINITIONS, **{name: definition.text for name, definition in special.items()}}
    return DEFINITIONS
