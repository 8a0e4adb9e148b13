"""The sentences of the report that do not depend on who wins."""

from flatbayes.reports.results import Results, counted, seeds

DIFFERENCES = (
    "Flat − plain for every posterior, with its 95 % paired interval. An interval that misses the "
    "zero line has the colour and mark of the better twin; one that crosses it is grey."
)
MEANS = "Large marks are means, faint dots the single seeds (plain above its line, flat below)."
RELIABILITY = (
    "Accuracy of the predictions made with each confidence, all seeds pooled. On the dotted diagonal "
    "a model knows what it knows; below it is overconfident, above it underconfident. The larger a "
    "mark, the more predictions it stands for; the bars below show their number on a logarithmic scale."
)
CURVES = "Mean over seeds; the band is one standard deviation to each side."


def reading(results: Results) -> tuple[str, ...]:
    """What varies over seeds, what the intervals mean, and what is not corrected for."""
    same, total = counted(len(seeds(results)), "seed"), len(results["summary"])
    return (
        f"Each posterior was trained plain and flat with the same {same}. A seed sets the initial "
        "weights, the order of the batches, and which examples are in the training and in the "
        "validation part; the test part is fixed. Twins share a seed, so their difference is paired.",
        "The interval is a 95 % t-interval of the mean paired difference over seeds. It describes "
        "what another choice of seeds could change, not what another test set or another dataset "
        "could. A verdict is given where the interval excludes zero.",
        "No correction for multiple comparisons is applied. If flatness changed nothing at all, one "
        f"interval in twenty would still exclude zero by chance: about {total / 20:.1f} of the {total} "
        "here.",
    )
