"""Tables and sentences of docs/when-flat-wins.md, between its marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from studies.pages import replace_between

START, END = "<!-- numbers of studies/law -->", "<!-- end of the numbers -->"
FEATURE_TEXTS = {
    "gap": "the validation NLL ends more than {threshold:.2g} nats above the training loss",
    "rise": "the validation NLL ends more than {threshold:.2g} nats above its lowest value on the way",
    "sharpness": "one ascent step of length 0.05 raises the training loss by more than {threshold:.2g} nats",
    "weights_per_example": "the network has more than {threshold:.2g} weights per training example",
}


def update_page(page: Path, results: Mapping[str, Any]) -> None:
    """Write the content of `law.json` into the page."""
    sections = (describe_law, render_fine_tuning, render_tests, render_losses, describe_limits)
    replace_between(page, START, END, "\n\n".join(section(results) for section in sections))


def format_interval(interval: Any, sign: str = "") -> str:
    """An interval in brackets."""
    low, high = interval
    return f"[{low:{sign}.2f}, {high:{sign}.2f}]"


def describe_law(results: Mapping[str, Any]) -> str:
    """The sentence, its test, and what is gained."""
    feature, counts = results["law"]["features"][0], results["counts"]["law"]
    test, guess = results["law_test"][results["rule"]], results["law_test"]["majority guess"]
    text = FEATURE_TEXTS[feature].format(threshold=results["threshold"] or 0.0)
    recovered = results["recovered"]
    sentences = [
        "**Of networks from scratch, with a radius chosen on validation examples, flat training lowers the test NLL "
        f"where in plain training {text}.**",
        "",
        f"* {counts['twins']} pairs of a plain and a flat training on {counts['data_sets']} data sets, the radius "
        "chosen on validation examples from values above 0: by the 95 % interval (or, with one seed, the sign) flat "
        f"wins {counts['flat']}, plain {counts['plain']}, and {counts['tie']} are within noise.",
        f"* On data sets that were left out, the rule names the variant with the lower test NLL in "
        f"{test['accuracy']:.0%} of the pairs (95 % interval over data sets "
        f"{format_percent(test['accuracy_interval'])}; every data set has the same weight). "
        "Always guessing the majority of the other sets has "
        f"{guess['accuracy']:.0%} {format_percent(guess['accuracy_interval'])}; the difference is "
        f"{test['over_majority']:+.2f} {format_interval(test['over_majority_interval'], sign='+')}. Without the "
        f"pairs within noise the rule is right in {test['decided']:.0%} "
        f"{format_percent(test['decided_interval'])}, the majority guess in "
        f"{guess['decided']:.0%} {format_percent(guess['decided_interval'])}.",
        f"* Rank correlation of the predicted probability and the gain, over data sets left out: "
        f"{test['rank_correlation']:.2f}.",
    ]
    if feature in ("gap", "rise"):
        sentences.append(
            f"* Above the threshold the gain in test NLL is {recovered['median']:.2f} times that {feature} (median "
            f"of {recovered['data_sets']} data sets; quartiles {recovered['lower_quartile']:.2f} and "
            f"{recovered['upper_quartile']:.2f})."
        )
    return "\n".join(sentences)


def format_percent(interval: Any) -> str:
    """An interval of fractions in percent."""
    low, high = interval
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def render_tests(results: Mapping[str, Any]) -> str:
    """Table of all rules on data sets left out."""
    counts = results["counts"]["complete"]
    lines = [
        "### All rules that were tried",
        "",
        f"{counts['twins']} pairs on {counts['data_sets']} data sets that have all features. A rule is a logistic "
        "regression on log10 of the features, fitted without the data set that it is tested on.",
        "",
        "| Feature | Accuracy | [95 %] | Minus majority guess | [95 %] | Without ties | Rank correlation |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for name, test in sorted(results["tests"].items(), key=lambda item: -item[1]["accuracy"]):
        correlation = "" if test["rank_correlation"] is None else f"{test['rank_correlation']:.2f}"
        lines.append(
            f"| {name} | {test['accuracy']:.2f} | {format_interval(test['accuracy_interval'])} | "
            f"{test['over_majority']:+.2f} | {format_interval(test['over_majority_interval'], sign='+')} | "
            f"{test['decided']:.2f} | {correlation} |"
        )
    return "\n".join(lines)


def render_fine_tuning(results: Mapping[str, Any]) -> str:
    """What the rule says of pretrained networks, which it was not fitted to, and whether it is right."""
    twins = results["fine_tuning"]
    right = sum((twin["probability"] >= 0.5) == (twin["gain"] > 0) for twin in twins)
    decided = [twin for twin in twins if twin["outcome"] != "tie"]
    right_decided = sum((twin["probability"] >= 0.5) == (twin["gain"] > 0) for twin in decided)
    feature, groups = results["law"]["features"][0], group_twins(twins).values()
    means = [[fmean(twin[key] for twin in group) for group in groups] for key in (feature, "gain")]
    correlation = spearmanr(*means).statistic
    return "\n".join(
        [
            "### Pretrained networks, which the rule was not fitted to",
            "",
            f"The rule is right in {right} of {len(twins)} pairs, and in {right_decided} of the {len(decided)} that "
            f"are not within noise. Over the {len(groups)} settings the rank correlation of {feature} and mean gain "
            f"is {correlation:.2f}.",
            "",
            *render_groups(results, twins),
        ]
    )


def render_losses(results: Mapping[str, Any]) -> str:
    """Data sets and networks on which flat does not win, with the feature of the rule."""
    losses = [
        twin
        for twins in group_twins(results["twins"]).values()
        if 2 * sum(twin["outcome"] == "flat" for twin in twins) <= len(twins)
        for twin in twins
    ]
    return "\n".join(["### Where flat loses or ties", "", *render_groups(results, losses)])


def group_twins(twins: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Twins by data set and setting."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for twin in twins:
        groups.setdefault((twin["data"], twin["setting"]), []).append(twin)
    return groups


def render_groups(results: Mapping[str, Any], twins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Table with a row for each data set and setting: outcomes, feature, mean gain, and what the rule says."""
    feature = results["law"]["features"][0]
    lines = [
        f"| Data set | Network | Methods: flat, tie, plain | {feature.replace('_', ' ')} | Mean gain | Rule |",
        "|---|---|---|---:|---:|---|",
    ]
    for (data, setting), group in sorted(group_twins(twins).items()):
        wins = ", ".join(str(sum(twin["outcome"] == name for twin in group)) for name in ("flat", "tie", "plain"))
        mean = {key: fmean(twin[key] for twin in group) for key in (feature, "gain", "probability")}
        verdict = "flat" if mean["probability"] >= 0.5 else "plain"
        lines.append(f"| {data} | {setting} | {wins} | {mean[feature]:.3g} | {mean['gain']:+.4f} | {verdict} |")
    return lines


def describe_limits(results: Mapping[str, Any]) -> str:
    """What the rule does not predict: a radius that is not chosen; and how the earlier forecast did."""
    fixed, earlier = results["fixed_radius"], results["earlier_forecast"]
    return "\n".join(
        [
            "### With a radius that was not chosen the rule does not hold",
            "",
            f"On {fixed['twins']} pairs of {fixed['data_sets']} data sets with early stopping and a radius of 0.05, "
            f"which was not chosen for them, the rule is right in {fixed['accuracy']:.0%}, the majority guess in "
            f"{fixed['majority']:.0%}; rank correlation {fixed['rank_correlation']:.2f}. What the rule predicts is "
            "the gain at a radius that was chosen on validation examples.",
            "",
            "`flatbayes.diagnostics.forecast_flatness` has the rule. Its earlier coefficients, from 12 of these data "
            f"sets and with a threshold of 0.054, are right in {earlier['accuracy']:.0%} of the "
            f"{earlier['twins']} pairs with a validation history.",
        ]
    )
