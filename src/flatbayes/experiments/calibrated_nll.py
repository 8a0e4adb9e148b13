"""Calibrated NLL of every run of a comparison, and the deep-ensemble equivalent of its runs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from flatbayes.data import Split
from flatbayes.experiments.run_result import RunResult
from flatbayes.likelihoods import CategoricalPredictive
from flatbayes.metrics import cross_fitted_nll, ensemble_equivalent, ensemble_nlls
from flatbayes.posteriors import Ensemble
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.evaluation import predict_labelled

NLL, EQUIVALENT = "nll_calibrated", "dee"
BATCH_SIZE = 256
"""That of `evaluate`, whose predictions are used again."""
NO_ENSEMBLE = (
    "The deep-ensemble equivalent (dee) is left out: it needs an ensemble of at least two single networks with plain "
    "training in the comparison, such as Ensemble(size=5)."
)


def measure_likelihood(
    fitted: FittedPosterior, split: Split, num_draws: int, seed: int
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Calibrated NLL of a classification; and of an ensemble of single networks, those of its first members.

    Returns:
        The metric by name, which is missing for numbers, several labels and positions; and the NLL of 1, 2, ...
        members.
    """
    if fitted.likelihood.has_positions:  # predictions of all examples may be larger than the memory
        return {}, ()
    predict = partial(
        predict_labelled, fitted, split.inputs, split.targets, num_draws, batch_size=BATCH_SIZE, seed=seed
    )
    predictive, labels, _ = predict()
    if not isinstance(predictive, CategoricalPredictive):
        return {}, ()
    metrics = {NLL: cross_fitted_nll(predictive.log_probs, labels)}
    if not isinstance(fitted.posterior, Ensemble) or fitted.posterior.stochastic or len(fitted.states) < 2:
        return metrics, ()
    members, labels, _ = predict(keep_members=True)
    probs = members.member_probs if isinstance(members, CategoricalPredictive) else None
    return metrics, () if probs is None else ensemble_nlls(probs, labels)


def add_ensemble_equivalents(runs: Sequence[RunResult], baseline: str) -> tuple[list[RunResult], tuple[str, ...]]:
    """Add the deep-ensemble equivalent to every run whose seed has a plain ensemble.

    Returns:
        The runs, and why the metric is missing in a comparison of classifications.
    """
    curves: dict[int, tuple[float, ...]] = {}
    for run in runs:
        nlls = tuple(value for value in run.details.ensemble_nlls if value is not None)
        is_complete = len(nlls) == len(run.details.ensemble_nlls)
        if run.flatness == baseline and is_complete and len(nlls) > len(curves.get(run.seed, ())):
            curves[run.seed] = nlls
    completed = [
        replace(run, metrics={**run.metrics, EQUIVALENT: ensemble_equivalent(value, curves[run.seed])})
        if (value := run.metrics.get(NLL)) is not None and run.seed in curves
        else run
        for run in runs
    ]
    is_missing = not curves and any(NLL in run.metrics for run in runs)
    return completed, (NO_ENSEMBLE,) if is_missing else ()
