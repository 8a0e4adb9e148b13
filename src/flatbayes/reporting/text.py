"""Fixed texts of the report."""

from collections.abc import Sequence

from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult
from flatbayes.reporting.queries import list_seeds

DIFFERENCES_TEXT = (
    "Flat − plain for every posterior, with its 95 % paired interval. An interval that excludes "
    "zero has the colour and mark of the better variant; one that contains zero is grey."
)
MEANS_TEXT = "Large marks are means, faint dots single seeds (plain above the line, flat below)."
RELIABILITY_TEXT = (
    "Accuracy of the predictions with each confidence, all seeds pooled. On the dotted diagonal "
    "predictions are calibrated; below it they are overconfident, above it underconfident. The larger a "
    "mark, the more predictions are in its bin; the steps below show their number on a logarithmic scale. "
    "The thin bar behind a mark is the 95 % binomial interval (Wilson) of its accuracy, for as many predictions "
    "as one seed has in the bin: seeds predict the same test examples, so more seeds are not more examples. Pixels, "
    "tokens or labels of one example count as fewer, as many as independent ones with the same standard error. Where "
    "it crosses the diagonal, the gap can be due to chance alone."
)
COVERAGE_TEXT = (
    "Fraction of the targets inside the central interval of each level, all seeds pooled. On the dotted "
    "diagonal an 80 % interval holds 80 % of the targets; below it intervals are too narrow "
    "(overconfident), above it too wide."
)
FAMILY_TEXTS = {
    "Ranking of two classes": "How well the probability of the second class ranks its examples above the others, at "
    "every threshold. Where that class is rare, the average precision tells more than the AUROC.",
    "Calibrated likelihood": "NLL of each half of the examples at the temperature that is best for the other half, "
    "averaged over random halves, so that methods are compared at their optimal temperatures (Ashukha et al., 2020); "
    "and the number of networks of a plain deep ensemble of the same seed that reach the same.",
    "Distance to the exact posterior": "Distance of the predictions to those of long full-batch chains of the exact "
    "posterior, plain and sharpness-aware. Closeness is no better prediction in itself: compare it with the NLL.",
    "Calibration": "After temperature scaling on validation data, methods differ only in how they rank and "
    "distribute their confidence, which makes the comparison fair. AURC rewards lower confidence for wrong "
    "predictions.",
    "Shift": "The test images corrupted in 15 ways and several severities, after Hendrycks and Dietterich (2019); "
    "no network was trained on them. The curves are means over corruptions; severity 0 is clean.",
    "Out-of-distribution detection": "Out-of-distribution inputs, standardised like the training data, are to be "
    "detected by the uncertainty of the prediction.",
    "Sharpness": "Rise of the training loss around networks drawn from the posterior, for all runs at the same "
    "radius and on the same examples, in evaluation mode. The loss at the draws is listed too, since a network with "
    "a high loss can be flat. The curves go through draws along random directions with every filter as long as "
    "that of the network (Li et al., 2018): at distance 1 the noise is as large as the weights.",
}
"""Introduction of each table beside the usual metrics."""

CURVES_TEXT = "Mean over seeds; the band is one standard deviation to each side."


def describe_selection(
    metric: str, num_seeds: int, num_plain_trials: int, num_flat_trials: int, unpaid: Sequence[str] = ()
) -> str:
    """How hyperparameters were selected.

    For the methods in `unpaid` plain training has the best score.
    """
    note = f" On validation data flatness does not pay for {', '.join(unpaid)}." if unpaid else ""
    return (
        f"Hyperparameters were selected on the validation split by {metric}, the mean over "
        f"{format_count(num_seeds, 'seed')}; the test split was not used. First, each method got the setting that is "
        f"best for plain training ({format_count(num_plain_trials, 'trial')} in all). The flat run has the same "
        f"setting, and only its flatness was selected ({format_count(num_flat_trials, 'trial')}): the shared "
        f"settings favour plain training.{note}"
    )


def explain_statistics(results: ComparisonResult) -> tuple[str, ...]:
    """What varies over seeds, what the intervals mean, and what they are not corrected for."""
    seeds, total = format_count(len(list_seeds(results)), "seed"), len(results.rows)
    return (
        f"Each posterior was trained plain and flat with the same {seeds}. A seed determines the initial "
        "weights, the order of the batches, and which examples are in the training and in the "
        "validation split; the test split is fixed, unless the data have standard splits, which the "
        "seed then numbers. The plain and the flat run of a seed are paired.",
        "The interval is a 95 % t-interval of the mean paired difference over seeds. It describes "
        "the variation over seeds, not over test sets or data sets. A verdict is given where the interval excludes "
        "zero.",
        "The column Holm has the p-value of the paired t-test, corrected for the number of comparisons in its "
        "table (Holm, 1979): below 0.05 the probability of even one false verdict in the table is below 5 %. "
        f"Uncorrected, of the {format_count(total, 'interval')} here about {total / 20:.1f} would exclude zero if "
        "flatness changed nothing at all.",
        "The effect is Cohen's d of the paired differences, positive where flat is better: their mean divided by "
        "their standard deviation over seeds.",
        *results.notes,
    )
