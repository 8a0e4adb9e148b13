"""The sentences of the report that do not depend on who wins."""

from flatbayes.reporting.queries import Results, format_count, list_seeds

DIFFERENCES_TEXT = (
    "Flat − plain for every posterior, with its 95 % paired interval. An interval that misses the "
    "zero line has the colour and mark of the better twin; one that crosses it is grey."
)
MEANS_TEXT = "Large marks are means, faint dots the single seeds (plain above its line, flat below)."
RELIABILITY_TEXT = (
    "Accuracy of the predictions made with each confidence, all seeds pooled. On the dotted diagonal "
    "a model knows what it knows; below it is overconfident, above it underconfident. The larger a "
    "mark, the more predictions it stands for; the steps below show their number on a logarithmic scale. "
    "The thin bar behind a mark is the 95 % binomial interval (Wilson) of its accuracy, for as many predictions "
    "as one seed makes there: seeds predict the same test examples, so more seeds are not more examples. Where it "
    "crosses the diagonal, chance alone could explain the gap."
)
COVERAGE_TEXT = (
    "Share of the targets inside the central interval of each level, all seeds pooled. On the dotted "
    "diagonal an 80 % interval holds 80 % of the targets; below it intervals are too narrow "
    "(overconfident), above it too wide."
)
FAMILY_TEXTS = {
    "Calibration": "After temperature scaling on validation data, methods are compared by what they know of the "
    "order of things alone: the fair comparison of confidence. AURC rewards knowing which predictions are wrong.",
    "Shift": "The test images corrupted in 15 ways and several severities, after Hendrycks and Dietterich (2019); "
    "nothing was trained on them. The curves are means over corruptions; severity 0 is clean.",
    "Foreign inputs": "Inputs from elsewhere, standardised like the training data, are to be told from test inputs "
    "by how uncertain the prediction is.",
    "Sharpness": "How much the training loss rises around networks drawn from the posterior, all twins at the same "
    "radius and on the same examples, in evaluation mode; the loss at the draws stands beside it, since flat and bad "
    "is easy. The curves go through draws along random directions in which every filter is as long as the network's "
    "own (Li et al., 2018): at distance 1 the noise is as large as the weights.",
}
"""What each table beside the usual metrics is about."""

CURVES_TEXT = "Mean over seeds; the band is one standard deviation to each side."


def describe_selection(metric: str, num_seeds: int, num_plain_trials: int, num_flat_trials: int) -> str:
    """What decided on the hyperparameters, and how often each twin was tried."""
    return (
        f"Hyperparameters were chosen on validation data by {metric}, a mean over {format_count(num_seeds, 'seed')}, lower "
        "being better; the test part was not looked at. For each method the setting came first that is best when "
        f"trained plainly ({format_count(num_plain_trials, 'trial')} in all). The flat twin shares it, and had its flatness alone to "
        f"choose ({format_count(num_flat_trials, 'trial')}): what the twins share suits the plain one."
    )


def explain_statistics(results: Results) -> tuple[str, ...]:
    """What varies over seeds, what the intervals mean, and what is not corrected for."""
    same, total = format_count(len(list_seeds(results)), "seed"), len(results["summary"])
    return (
        f"Each posterior was trained plain and flat with the same {same}. A seed sets the initial "
        "weights, the order of the batches, and which examples are in the training and in the "
        "validation part; the test part is fixed, unless the data come with standard splits, of which the "
        "seed is the number. Twins share a seed, so their difference is paired.",
        "The interval is a 95 % t-interval of the mean paired difference over seeds. It describes "
        "what another choice of seeds could change, not what another test set or another dataset "
        "could. A verdict is given where the interval excludes zero.",
        "The column Holm has the p-value of the paired t-test, corrected for the number of comparisons in its "
        "table (Holm, 1979): below 0.05 the chance of even one false verdict in the table is below one in twenty. "
        f"Uncorrected, of the {total} intervals here about {total / 20:.1f} would exclude zero if flatness changed "
        "nothing at all.",
        "The effect is Cohen's d of the paired differences, positive where flat is better: their mean in units of "
        "their standard deviation over seeds.",
    )
