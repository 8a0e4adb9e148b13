"""Gaussian posteriors: variational ones that are the prior or a point, Laplace approximations that are too wide."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from flatbayes.checks.evidence import Evidence, get_method
from flatbayes.checks.report import Finding, format_percent
from flatbayes.checks.spread import measure_difference
from flatbayes.core import State
from flatbayes.core.display import format_number
from flatbayes.core.tensor_lists import flatten
from flatbayes.likelihoods import BernoulliPredictive, CategoricalPredictive, NumberPredictive, Predictive
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.posteriors import BSAM, IVON, LRT, SGVB, Ensemble, Laplace, Posterior
from flatbayes.posteriors.curvature_structures import make_curvature
from flatbayes.posteriors.laplace import LAST_LAYER_STRUCTURES, PredictiveMode
from flatbayes.posteriors.optimization import resolve_temperature
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.prediction import FittedPosterior

MIN_INFORMATION = 0.02
"""Smallest part of the uncertainty about a target that the inputs explain."""
MAX_UNCHANGED_SHARE, UNCHANGED_LOG_RATIO = 0.9, 0.05
"""Largest part of standard deviations that may be those at the start, up to this difference of logarithms."""
MIN_RATIO = 1e-4
"""Standard deviation, in units of that at the start, below which a weight is a number."""
NUM_DRAWS = 10
"""Networks of each of the two predictives of a Laplace approximation."""
MAX_DIFFERENCE = 0.1
"""Largest mean distance of the two predictives: total variation of classes; standard deviations of numbers."""


def check_collapse(evidence: Evidence) -> Finding | str:
    """Whether a variational posterior is the prior, so that inputs explain nothing, or a point."""
    method = evidence.method
    if not isinstance(method, SGVB | LRT | IVON | BSAM):
        return "the posterior is not variational"
    ratios = torch.cat([collect_std_ratios(method, state) for state in evidence.fitted.states])
    share = float(((ratios.log().abs() < UNCHANGED_LOG_RATIO) | (ratios < MIN_RATIO)).double().mean())
    information = measure_explained(evidence.predictive)
    if share <= MAX_UNCHANGED_SHARE and information is not None and information < MIN_INFORMATION:
        initial = "" if isinstance(method, IVON | BSAM) else "prior_precision='initial', "
        return Finding(
            "collapse",
            False,
            "The variational posterior has collapsed to the prior",
            f"the inputs explain {format_percent(information)} of the uncertainty about the target",
            information,
            f"at least {format_percent(MIN_INFORMATION)}",
            f"a lower temperature (now {resolve_temperature(method.temperature):g}), {initial}or a smaller network",
        )
    return Finding(
        "collapse",
        share <= MAX_UNCHANGED_SHARE,
        "The variational posterior has not been learnt",
        f"{format_percent(share)} of the standard deviations are those from which training started, or next to zero",
        share,
        f"at most {format_percent(MAX_UNCHANGED_SHARE)}",
        "beta2 = 1 - 10 / steps in a training of at least 1,000 steps; with fewer its estimates are too noisy"
        if isinstance(method, IVON | BSAM)
        else "train longer, or a larger learning rate: a step moves log standard deviations by one learning rate",
    )


def measure_explained(predictive: Predictive) -> float | None:
    """Part of the uncertainty about a target that the inputs explain: 0 for a prediction that ignores them.

    For classes H[mean p] - mean H[p] over the examples, as a part of H[mean p], and for labels the same with the sums
    over the labels; for numbers the variance of the
    means, as a part of the whole variance.
    """
    predictive = predictive.flatten()
    if isinstance(predictive, CategoricalPredictive):
        marginal = float(categorical_entropy(predictive.mean.mean(0).log()[None])[0])
        return (marginal - float(predictive.entropy.mean())) / max(marginal, 1e-12)
    if isinstance(predictive, BernoulliPredictive):
        log_probs = predictive.log_probs.logsumexp(0) - math.log(len(predictive.log_probs))
        marginal = float(categorical_entropy(log_probs).sum())
        return (marginal - float(predictive.entropy.mean())) / max(marginal, 1e-12)
    if isinstance(predictive, NumberPredictive):
        between = predictive.mean.var(0, correction=0)
        return float((between / (between + predictive.variance.mean(0))).mean())
    return None


def collect_std_ratios(method: SGVB | LRT | IVON | BSAM, state: State) -> Tensor:
    """Standard deviations of all weights with a distribution, in units of those at the start, in one vector."""
    if isinstance(method, IVON):
        decay, hessian = state.statistics["weight_decay"], state.statistics["hessian"]
        return ((method.initial_hessian + decay) / (hessian + decay)).sqrt().cpu()
    if isinstance(method, BSAM):
        return (method.initial_scale / state.statistics["scale"]).sqrt().cpu()
    raws = [tensor for name, tensor in state.statistics.items() if name.startswith("raw_scale")]
    return torch.cat([raw_to_std(raw.detach()).flatten().cpu() for raw in raws]) / method.initial_std


def check_laplace_width(evidence: Evidence) -> Finding | str:
    """Whether the linearised and the sampled predictive of a Laplace approximation agree."""
    method = evidence.method
    if not isinstance(method, Laplace):
        return "the posterior is not a Laplace approximation"
    if method.structure in LAST_LAYER_STRUCTURES:
        return "a network that is linear in its random weights has one predictive"
    if obstacle := evidence.find_obstacle(evidence.fitted, NUM_DRAWS):
        return obstacle
    rows = evidence.probe_rows
    modes: tuple[PredictiveMode, ...] = ("linearised", "sampled")
    try:
        predictives = [
            evidence.predict(_replace_predictive(evidence.fitted, mode), rows, NUM_DRAWS) for mode in modes
        ]
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"the network has no other predictive ({str(error).splitlines()[0][:80]})"
    distances = measure_difference(*predictives)
    if distances is None:
        return "there is no distance for this kind of prediction"
    distance = float(distances.mean())
    scale = method.get_draw_option("scale")
    unit = "standard deviations" if isinstance(predictives[0], NumberPredictive) else "total variation"
    return Finding(
        "laplace_width",
        distance <= MAX_DIFFERENCE,
        "The Gaussian is wider than the region that it describes",
        f"the linearised and the sampled predictive differ by {distance:.3g} on average, in {unit}",
        distance,
        f"at most {MAX_DIFFERENCE:g}",
        f"scale='auto', or a smaller one (now {format_number(scale)}), a larger prior precision, or tune='evidence'",
    )


def _replace_predictive(fitted: FittedPosterior, mode: PredictiveMode) -> FittedPosterior:
    """The posterior with another predictive, which shares its networks."""
    states = []
    for state in fitted.states:
        method = get_method(fitted.posterior)
        assert isinstance(method, Laplace)
        params = make_curvature(method.structure, state.model).params.values()
        mean = state.statistics.get("mean", flatten([param.detach() for param in params]))
        states.append(replace(state, statistics={**state.statistics, "mean": mean}))
    return replace(fitted, posterior=_set_mode(fitted.posterior, mode), states=states, norm_statistics={})


def _set_mode(posterior: Posterior, mode: PredictiveMode) -> Posterior:
    if isinstance(posterior, Ensemble):
        return replace(posterior, member=_set_mode(posterior.member, mode))
    assert isinstance(posterior, Laplace)
    return replace(posterior, predictive=mode)
