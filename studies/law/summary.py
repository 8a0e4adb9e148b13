"""The law: which rule predicts best on data sets left out, how well, and where flat loses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flatbayes.experiments.run_folder import describe_environment
from studies.law.model import RULES, Rule, evaluate_rules, fit_rule, measure_accuracy, score_by_data
from studies.law.twins import FEATURES, FINE_TUNING, Twin

EARLIER_FORECAST = Rule(("rise",), 1.33, (1.05,))
"""That of `flatbayes.diagnostics.forecast_flatness` before this study."""


def summarize(twins: Sequence[Twin], rules: Mapping[str, tuple[str, ...]] = RULES) -> dict[str, Any]:
    """Content of `law.json`.

    The law is the rule with the highest rank correlation of predicted probability and gain on data sets left out.
    Accuracies hardly tell the rules apart: with some twenty data sets their intervals are wider than the differences.
    It was chosen before pretrained networks were trained, and is tested on them as it is.

    Args:
        twins: All twins. Rules are fitted to and tested on those of networks from scratch whose radius was chosen on
            validation examples.
        rules: Features by the name of the rule.
    """
    tuned = [twin for twin in twins if twin.study in FINE_TUNING]
    chosen = [twin for twin in twins if twin.radius == "chosen" and twin not in tuned]
    complete = select_usable(chosen, FEATURES)
    tests = evaluate_rules(complete, rules)
    name = max(rules, key=lambda rule: tests[rule]["rank_correlation"])
    usable = select_usable(chosen, rules[name])
    law = fit_rule(usable, rules[name])
    law_tests = evaluate_rules(usable, {name: rules[name]})
    usable_tuned = select_usable(tuned, rules[name])
    return {
        "environment": describe_environment(),
        "rule": name,
        "law": {"features": law.features, "intercept": law.intercept, "coefficients": law.coefficients},
        "threshold": law.threshold,
        "counts": {"complete": count_twins(complete), "law": count_twins(usable)},
        "tests": {rule: drop_probabilities(test) for rule, test in tests.items()},
        "law_test": {rule: drop_probabilities(test) for rule, test in law_tests.items()},
        "recovered": measure_recovered(usable, rules[name][0], law.threshold),
        "by_outcome": describe_outcomes(usable, law_tests[name]["probabilities"]),
        "earlier_forecast": check_earlier_forecast(chosen),
        "fixed_radius": check_fixed_radius(twins, law),
        "twins": [
            {**twin.to_dict(), "probability": probability}
            for twin, probability in zip(usable, law_tests[name]["probabilities"], strict=True)
        ],
        "fine_tuning": [
            {**twin.to_dict(), "probability": probability}
            for twin, probability in zip(usable_tuned, law.predict(usable_tuned), strict=True)
        ],
        "other_twins": [twin.to_dict() for twin in twins if twin not in usable and twin not in usable_tuned],
    }


def drop_probabilities(test: Mapping[str, Any]) -> dict[str, Any]:
    """A test without the predictions of single twins."""
    return {key: value for key, value in test.items() if key != "probabilities"}


def select_usable(twins: Sequence[Twin], features: Sequence[str]) -> list[Twin]:
    """The twins that have all features of a rule."""
    return [twin for twin in twins if all(getattr(twin, name) is not None for name in features)]


def count_twins(twins: Sequence[Twin]) -> dict[str, Any]:
    """Numbers of twins, data sets and outcomes."""
    outcomes = Counter(twin.outcome for twin in twins)
    return {
        "twins": len(twins),
        "data_sets": len({twin.data for twin in twins}),
        **{outcome: outcomes[outcome] for outcome in ("flat", "plain", "tie")},
        "lower_nll_flat": sum(twin.gain > 0 for twin in twins),
    }


def measure_recovered(twins: Sequence[Twin], feature: str, threshold: float | None) -> dict[str, float]:
    """Gain as a multiple of the feature, above the threshold: median and quartiles over data sets."""
    ratios: dict[str, list[float]] = {}
    for twin in twins:
        value = getattr(twin, feature)
        if value > (threshold or 0.0):
            ratios.setdefault(twin.data, []).append(twin.gain / value)
    low, middle, high = np.percentile([np.median(group) for group in ratios.values()], [25, 50, 75])
    return {
        "lower_quartile": float(low),
        "median": float(middle),
        "upper_quartile": float(high),
        "data_sets": len(ratios),
    }


def describe_outcomes(twins: Sequence[Twin], probabilities: Sequence[float]) -> dict[str, dict[str, int]]:
    """For each outcome by the interval of the gain, how many twins the rule gave to flat and to plain."""
    table = {outcome: {"predicted_flat": 0, "predicted_plain": 0} for outcome in ("flat", "tie", "plain")}
    for twin, probability in zip(twins, probabilities, strict=True):
        table[twin.outcome]["predicted_flat" if probability >= 0.5 else "predicted_plain"] += 1
    return table


def check_earlier_forecast(twins: Sequence[Twin]) -> dict[str, float]:
    """Accuracy of the forecast that was fitted to 12 of the data sets, on twins with a validation history."""
    usable = select_usable(twins, EARLIER_FORECAST.features)
    predicted = EARLIER_FORECAST.predict(usable)
    return {
        "accuracy": measure_accuracy(usable, predicted),
        "rank_correlation": score_by_data(usable, predicted),
        "twins": len(usable),
    }


def check_fixed_radius(twins: Sequence[Twin], law: Rule) -> dict[str, float]:
    """Accuracy of the law on twins with a radius of 0.05, which it was not fitted to, of the same data sets."""
    usable = select_usable([twin for twin in twins if twin.radius == "fixed"], law.features)
    share = measure_accuracy(usable, [1.0] * len(usable))
    return {
        "accuracy": measure_accuracy(usable, law.predict(usable)),
        "majority": max(share, 1 - share),
        "rank_correlation": score_by_data(usable, law.predict(usable)),
        "twins": len(usable),
        "data_sets": len({twin.data for twin in usable}),
    }
