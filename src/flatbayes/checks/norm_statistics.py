"""Running statistics of normalisation layers, compared with those of the examples at hand."""

import math

import torch
from torch import Tensor

from flatbayes.checks.evidence import Evidence
from flatbayes.checks.report import Finding
from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics
from flatbayes.posteriors.linearised import LinearisedNetwork

MAX_SHIFT = 0.5
"""Largest median over the channels of a layer of the difference of the means, in standard deviations."""
MAX_LOG_RATIO = 0.7
"""Largest median of the absolute log ratio of the variances: a factor of 2."""
MIN_EXAMPLES = 20


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
