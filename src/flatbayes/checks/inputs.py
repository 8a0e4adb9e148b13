"""Inputs that are unlike those of the training, and inputs that were used for it."""

from flatbayes.checks.calibration_tests import run_fractions_test
from flatbayes.checks.evidence import Evidence
from flatbayes.checks.report import Finding, format_percent
from flatbayes.prediction.training_inputs import FAR_QUANTILE, MAX_ROWS

MAX_OUTSIDE = 0.05
"""Largest fraction of inputs outside of the training data, and largest excess of inputs that are far."""
MAX_DUPLICATES = 0.02
"""Largest fraction of inputs that are training inputs, where these do not repeat each other."""
MIN_EXAMPLES = 20
NO_STATISTICS = "the artefact has no statistics of the training inputs"


def check_inputs_outside(evidence: Evidence) -> Finding | str:
    """Whether inputs are far from all training inputs."""
    if evidence.inputs is None:
        return "the inputs are not one tensor"
    rows = evidence.probe_rows.to(evidence.inputs.device)
    distance = evidence.fitted.measure_input_distance(evidence.inputs[rows])
    if distance is None:
        return NO_STATISTICS
    far, outside = (float(flags.double().mean()) for flags in (distance.is_far, distance.is_outside))
    count, num_compared = len(distance.is_far), min(evidence.fitted.states[0].num_data, MAX_ROWS) // 2
    p_values = [
        run_fractions_test(round(share * count), count, round(expected * num_compared), num_compared)
        for share, expected in ((far, 1 - FAR_QUANTILE), (outside, 0.0))
    ]
    return Finding(
        "inputs_outside",
        max(far - (1 - FAR_QUANTILE), outside) <= MAX_OUTSIDE,
        "The inputs are unlike those of the training",
        f"{format_percent(far)} of them are farther from the mean than {format_percent(FAR_QUANTILE)} of the "
        f"training inputs, and {format_percent(outside)} outside of the training data",
        max(far - (1 - FAR_QUANTILE), outside),
        f"at most {format_percent(MAX_OUTSIDE + 1 - FAR_QUANTILE)}, and {format_percent(MAX_OUTSIDE)}",
        "units and preparation as in training, or training data like these; fitted.measure_input_distance(inputs) "
        "and the column outside_training of flatbayes predict tell which inputs",
        min(1.0, 2 * min(p_values)),
    )


def check_duplicates(evidence: Evidence) -> Finding | str:
    """Whether inputs are training inputs too."""
    statistics = evidence.fitted.training_inputs
    if statistics is None or evidence.inputs is None:
        return NO_STATISTICS
    estimate = statistics.estimate_duplicates(evidence.inputs)
    if estimate is None or estimate[1] < MIN_EXAMPLES:
        return "too few of the inputs can be compared with training inputs"
    (share, count), repeated = estimate, statistics.repeated_fraction
    limit = min(1.0, max(MAX_DUPLICATES, 2 * repeated))
    return Finding(
        "duplicates",
        share <= limit,
        "Examples were used for training, so every measure is too good",
        f"{format_percent(share)} of {count} inputs are training inputs, of which {format_percent(repeated)} repeat "
        "others",
        share,
        f"at most {format_percent(limit)}",
        "examples that were not used for training; splits by group, time or source instead of by row",
    )
