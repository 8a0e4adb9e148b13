"""Spread of the draws: networks that all predict the same, or whose average is worse than the central network.

The epistemic uncertainty is the mutual information I of target and network. A regular model with d weights and n
examples has about d / (2 n) nats of it, a small network with many examples hardly any: the draws are called one
network where I is small beside the entropy and beside this number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flatbayes.checks.calibration_tests import run_paired_test
from flatbayes.checks.evidence import Evidence, compute_example_nll, get_method
from flatbayes.checks.report import Finding, format_percent
from flatbayes.core.display import format_number
from flatbayes.core.traversal import list_parameters
from flatbayes.likelihoods import BernoulliPredictive, CategoricalPredictive, NumberPredictive, Predictive
from flatbayes.likelihoods.categorical_predictive import ClassProbabilities
from flatbayes.posteriors import (
    BSAM,
    IVON,
    LRT,
    MAP,
    SGHMC,
    SGLD,
    SGVB,
    SVGD,
    SWAG,
    Ensemble,
    EntropyMCMC,
    Laplace,
    MCDropout,
    Posterior,
)
from flatbayes.posteriors.draw_options import replace_option
from flatbayes.posteriors.optimization import resolve_temperature
from flatbayes.prediction import FittedPosterior

MIN_SPREAD = 0.01
"""Smallest mutual information as a part of the entropy, or of the variance."""
MAX_EXPECTED_INFORMATION = 1.0
"""Largest mutual information that is expected of many weights, in nats."""
CENTRE_SCALE = 1e-12
"""Factor on the covariance with which every draw is the centre."""
MAX_LOSS_OF_AVERAGE = 0.02
"""Largest NLL of the average above that of the central network, in nats."""


def check_one_network(evidence: Evidence) -> Finding | str:
    """Whether the networks of a posterior differ in what they predict."""
    if evidence.num_networks == 1:
        return "the posterior is a single network"
    spread = measure_spread(evidence.predictive)
    if spread is None:
        return "there is no mutual information for this kind of prediction"
    information, share = spread
    expected = expect_information(evidence.fitted)
    return Finding(
        "one_network",
        share >= MIN_SPREAD or information >= MIN_SPREAD * expected,
        "The draws are practically one network",
        f"the differences of the {evidence.num_networks} networks are {format_percent(share)} of the uncertainty, a "
        f"mutual information of {information:.2g} nats",
        share,
        f"at least {format_percent(MIN_SPREAD)}",
        _suggest_wider(evidence),
    )


def measure_spread(predictive: Predictive) -> tuple[float, float] | None:
    """Mean mutual information in nats, and the part of the uncertainty that the networks' differences are.

    The part is that of the mean entropy for classes and labels, and of the mean variance for numbers, where the
    information of one network about a target is at least half of the ratio of the variances, if the means are normal.
    """
    predictive = predictive.flatten()
    if isinstance(predictive, BernoulliPredictive | CategoricalPredictive):
        information, entropy = float(predictive.mutual_information.mean()), float(predictive.entropy.mean())
        return information, information / max(entropy, 1e-12)
    if isinstance(predictive, NumberPredictive):
        ratio = predictive.epistemic / predictive.variance.clamp_min(1e-300)
        return float(ratio.mean()) / 2, float(ratio.mean())
    return None


def expect_information(fitted: FittedPosterior) -> float:
    """Mutual information of a regular model, d / (2 n) nats with d weights and n examples, at most 1."""
    num_weights = sum(p.numel() for p in list_parameters(fitted.states[0].model) if p.requires_grad)
    return min(MAX_EXPECTED_INFORMATION, num_weights / (2 * max(1, fitted.states[0].num_data)))


def check_wide_posterior(evidence: Evidence) -> Finding | str:
    """Whether the average over the draws predicts worse than the network at the centre of the posterior."""
    centre = make_centre(evidence.fitted)
    if centre is None:
        return f"{type(evidence.method).__name__} has no central network"
    if obstacle := evidence.find_obstacle(centre, len(centre.states)):
        return obstacle
    rows = evidence.probe_rows
    average = compute_example_nll(evidence.predictive.select(rows), evidence.targets[rows])
    alone = compute_example_nll(evidence.predict(centre, rows, len(centre.states)), evidence.targets[rows])
    if average is None or alone is None:
        return "there is no NLL for this kind of prediction"
    difference = average - alone
    return Finding(
        "wide_posterior",
        float(difference.mean()) <= MAX_LOSS_OF_AVERAGE,
        "The draws lie too far apart",
        f"the NLL of the average of {evidence.num_networks} networks is {float(average.mean()):.4g}, and that of the "
        f"central network {float(alone.mean()):.4g}",
        float(difference.mean()),
        f"at most {MAX_LOSS_OF_AVERAGE} nats more",
        suggest_narrower(evidence),
        run_paired_test(difference),
    )


def make_centre(fitted: FittedPosterior) -> FittedPosterior | None:
    """The posterior with all mass on the centre of each member; None where no single network is the centre."""
    scales = [name for name in fitted.posterior.draw_options if name.rpartition(".")[2] in ("scale", "std")]
    if scales and fitted.posterior.stochastic:
        posterior = fitted.posterior
        for name in scales:
            posterior = replace_option(posterior, name, CENTRE_SCALE)
        return replace(fitted, posterior=posterior, norm_statistics={})
    if isinstance(get_method(fitted.posterior), MCDropout):  # the network without dropout
        return replace(fitted, posterior=_replace_method(fitted.posterior, MAP()), norm_statistics={})
    return None


def _replace_method(posterior: Posterior, method: Posterior) -> Posterior:
    if isinstance(posterior, Ensemble):
        return replace(posterior, member=_replace_method(posterior.member, method))
    return method


def _suggest_wider(evidence: Evidence) -> str:
    posterior, before, after = evidence.method, list[str](), list[str]()
    match posterior:
        case SWAG():
            after = ["a higher learning rate while snapshots are collected", "an Ensemble of SWAG"]
        case SGVB() | LRT() | IVON() | BSAM():
            before = ["more steps for the standard deviations"]
        case SGLD() | SGHMC() | EntropyMCMC():
            before = ["more epochs", "a higher learning rate"]
        case SVGD(initial_std=float()):
            before = ["initial_std=None, so that every particle starts from new weights"]
        case Laplace():
            after = ["tune='evidence'"]
    temperature = resolve_temperature(getattr(posterior, "temperature", None))
    if temperature < 1:
        after.append(f"temperature 1 (now {temperature:g})")
    options = [*before, *_suggest_draw_options(evidence, "larger"), *after]
    return join_alternatives(options or ["an Ensemble, whose members start from different weights"])


def suggest_narrower(evidence: Evidence) -> str:
    """Options of the posterior with which its predictions are more certain."""
    options, temperature = _suggest_draw_options(evidence, "smaller"), getattr(evidence.method, "temperature", None)
    if temperature is not None:
        options.append(f"a lower temperature (now {temperature:g})")
    return join_alternatives(options or ["more epochs", "less weight decay (a smaller prior precision)"])


def _suggest_draw_options(evidence: Evidence, direction: str) -> list[str]:
    """The options that draws depend on, with their values; nothing for a posterior without."""
    selected, suggestions = _read_selected_options(evidence.fitted.info), []
    for name in evidence.method.draw_options:
        value = evidence.method.get_draw_option(name)
        text = "that of the training" if value is None else format_number(value)
        if name in selected and selected[name] == value:
            suggestions.append(f"a {direction} {name} than {text}, which validation examples chose")
        else:
            suggestions.append(f"{name}='auto', or a {direction} one (now {text})")
    return suggestions


def join_alternatives(alternatives: Sequence[str]) -> str:
    """Join alternatives with commas, and an "or" before the last one.

    >>> join_alternatives(["a"]), join_alternatives(["a", "b"]), join_alternatives(["a", "b", "c"])
    ('a', 'a, or b', 'a, b, or c')
    """
    return ", or ".join(filter(None, [", ".join(alternatives[:-1]), alternatives[-1]]))


def _read_selected_options(info: Mapping[str, Any]) -> dict[str, Any]:
    """Draw options that were chosen on validation examples, with their values; `info` has data of any types."""
    training = info.get("training")
    choices = training.get("draw_options") if isinstance(training, Mapping) else None
    return {
        name.rpartition(".")[2]: choice["value"]
        for name, choice in (choices.items() if isinstance(choices, Mapping) else ())
        if isinstance(choice, Mapping) and "value" in choice and "reason" not in choice
    }


def measure_difference(first: Predictive, second: Predictive) -> Tensor | None:
    """Distance of two predictions for each example: total variation of classes, means in standard deviations.

    For several labels, or a class at each position, it is the mean of the total variation of each.
    """
    if isinstance(first, ClassProbabilities) and isinstance(second, ClassProbabilities):
        return (first.mean - second.mean).abs().sum(-1).reshape(len(first.mean), -1).nanmean(1) / 2
    if isinstance(first, BernoulliPredictive) and isinstance(second, BernoulliPredictive):
        return (first.mean - second.mean).abs().mean(-1)
    if isinstance(first, NumberPredictive) and isinstance(second, NumberPredictive):
        distances = (first.mean - second.mean).abs() / second.std.clamp_min(1e-300)
        return distances if distances.ndim == 1 else distances.amax(-1)
    return None
