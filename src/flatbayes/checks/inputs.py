"""Examples unlike those of the training, by inputs or running statistics, and examples that were used for it."""

import math

import torch
from torch import Tensor

from flatbayes.checks.calibration_tests import run_fractions_test
from flatbayes.checks.evidence import Evidence
from flatbayes.checks.report import Finding, format_percent
from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics
from flatbayes.posteriors.linearised import LinearisedNetwork
from flatbayes.prediction.training_inputs import FAR_QUANTILE, MAX_ROWS

MAX_OUTSIDE = 0.05
"""Largest fraction of inputs outside of the training data, and largest excess of inputs that are far."""
MAX_DUPLICATES = 0.02
"""Largest fraction of inputs that are training inputs, where these do not repeat each other."""
MIN_EXAMPLES = 20
NO_STATISTICS = "the artefact has no statistics of the training inputs"
MAX_SHIFT = 0.5
"""Largest median over the channels of a layer of the difference of the means, in standard deviations."""
MAX_LOG_RATIO = 0.7
"""Largest median of the absolute log ratio of the variances: a factor of 2."""


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


def check_norm_statistics(evidence: Evidence) -> Finding | str:
    """Whether the running statistics of BatchNorm layers are those of the examples, in one network."""
    fitted = evidence.fitted
    if not any(norm_layers(state.model, state.updated_buffers) for state in fitted.states):
        return "the network has no running statistics that training updates"
    if evidence.inputs is None or len(evidence.targets) < MIN_EXAMPLES:
        return f"the comparison needs at least {MIN_EXAMPLES} examples in one tensor"
    rows = evidence.probe_rows.to(evidence.inputs.device)
    batch = fitted.preprocess(evidence.inputs[rows])
    sample_id = fitted.sample_ids(evidence.num_draws, evidence.seed)[0]
    updated = fitted.states[sample_id[1]].updated_buffers
    with fitted.sampled_network(sample_id) as network:
        if isinstance(network, LinearisedNetwork):
            network = network.network  # the expansion is around it, and has its statistics
        current = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
        estimated = reestimate_norm_statistics(network, [batch], updated)
    if not estimated:
        return "the network calls no layer with running statistics"
    name, shift, ratio = find_worst_layer(current, estimated)
    is_shift = shift / MAX_SHIFT >= ratio / MAX_LOG_RATIO
    difference = f"{shift:.3g} standard deviations" if is_shift else f"a factor of {math.exp(ratio):.3g}"
    return Finding(
        "norm_statistics",
        shift <= MAX_SHIFT and ratio <= MAX_LOG_RATIO,
        "The running statistics are not those of the examples",
        f"the running {'means' if is_shift else 'variances'} of {name} differ from theirs by {difference} in the "
        "median channel",
        shift if is_shift else ratio,
        f"at most {MAX_SHIFT:g} standard deviations, and a factor of 2",
        "more steps, a larger momentum of the layers, or inputs scaled as in training",
    )


def find_worst_layer(current: dict[str, Tensor], estimated: dict[str, Tensor]) -> tuple[str, float, float]:
    """Name of the layer with the largest difference, relative to its limit, and its two differences.

    Returns:
        The name, the median difference of the means in standard deviations of the examples, and the median absolute
        log ratio of the variances.
    """
    layers = []
    for key in (name for name in estimated if name.endswith("running_mean")):
        stem = key.removesuffix("running_mean")
        mean, variance = (estimated[stem + kind].cpu().double() for kind in ("running_mean", "running_var"))
        old_mean, old_variance = (current[stem + kind].cpu().double() for kind in ("running_mean", "running_var"))
        smallest = torch.finfo(torch.float32).tiny
        is_dead = (variance <= smallest) | (old_variance <= smallest)  # channels that are constant
        ratios = (variance.clamp_min(smallest) / old_variance.clamp_min(smallest)).log().abs()
        ratio = float(ratios.masked_fill(is_dead, 0.0).median())
        shift = float(
            ((mean - old_mean).abs() / variance.clamp_min(smallest).sqrt()).masked_fill(is_dead, 0.0).median()
        )
        layers.append((max(shift / MAX_SHIFT, ratio / MAX_LOG_RATIO), stem.removesuffix("."), shift, ratio))
    _, name, shift, ratio = max(layers)
    return name or "the network", shift, ratio
