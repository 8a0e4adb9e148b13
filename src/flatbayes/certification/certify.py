"""PAC-Bayes-kl certificates with a data-dependent prior: Pérez-Ortiz et al. (JMLR 2021), Dziugaite & Roy (2018).

1. Split the training data into a prior set and a bound set.
2. Train a network on the prior set; the prior P is a Gaussian around it.
3. For each prior standard deviation, fit a Gaussian posterior Q to the bound set; select the smallest bound.
4. Draw new networks from Q, and compute the bound of `flatbayes.theory.pac_bayes` from their losses on the bound set.

The only approximation is the Monte Carlo estimate over Q, whose error the bound includes with probability `delta_mc`.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.progress import track
from torch import nn

from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.gaussian import compute_divergence, fit_gaussian, make_gaussian_posterior
from flatbayes.certification.losses import DrawLosses, compute_losses, predict_draws
from flatbayes.certification.prior import (
    FrozenNetwork,
    compute_error_rate,
    split_prior_and_bound,
    train_prior_network,
)
from flatbayes.certification.result import CertificationResult, ErrorEstimates
from flatbayes.core import State
from flatbayes.core.components import resolve_component
from flatbayes.core.console import PlainConsole
from flatbayes.core.randomness import Stream, spawn_seed
from flatbayes.core.spec import short_name
from flatbayes.data import Split, make_source
from flatbayes.data.readers import set_task
from flatbayes.data.split_checks import check_split_values
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import Posterior
from flatbayes.prediction.labelled import read_as_task
from flatbayes.theory import PriorScale, compute_certificate_from_draws, holdout_bound, inverse_kl
from flatbayes.training import TrainingConfig
from flatbayes.training.arguments import resolve_config
from flatbayes.training.model_builder import ModelFactory

T = TypeVar("T")
FORWARD_BATCH_FACTOR = 4
"""Examples of a forward pass without gradients, in units of `CertificationConfig.batch_size`."""


def certify(
    model: nn.Module | ModelFactory,
    data: Any,
    flatness: Flatness = SAM(),
    config: TrainingConfig = TrainingConfig(),
    certification_config: CertificationConfig = CertificationConfig(),
    *,
    seed: int = 0,
    show_progress: bool | None = None,
) -> CertificationResult:
    """Compute an upper bound on the error rate of networks drawn from a posterior, from the training split.

    The validation split is used only for curves, and the test split only for estimates. `format_statement` puts the
    certificate and its assumptions into words.

    Args:
        model: A class or function that builds the network, or a network that was not trained on the data.
        data: A classification: splits, a source, or a pair `(inputs, targets)` or dataset, which is split at random
            by the seed.
        flatness: Perturbation at which the gradients for the prior network are taken.
        config: Training configuration of the prior network.
        certification_config: All other settings.
        seed: Seed of every random number; fix it beforehand, like the configuration.
        show_progress: Show progress bars on standard error; by default if that is a terminal.

    Raises:
        ValueError: The data are not a classification, or there are too few examples.
        RuntimeError: Training diverged, or something other than the weights of the network changed.

    Examples:
        >>> settings = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=9, num_test_draws=9)
        >>> result = certify(MLP, data, SAM(rho=0.05), config, settings)
        >>> 0 < result.error.bound <= 1
        True
    """
    source = make_source(data)
    data = read_as_task(lambda task: set_task(source, task).load(seed), Categorical)
    if data.is_regression:
        raise ValueError(
            "Certificates exist for classification only, since the errors of a regression are unbounded. Use data "
            "whose targets are classes."
        )
    if data.is_multi_label:
        raise ValueError(
            f"Certificates exist for one class of each example, and the data have {len(data.target_names)} labels. "
            "Use data whose targets are classes, such as those of one label."
        )
    if data.is_dense:
        raise ValueError(
            "Certificates exist for one class of each example, and the data have a class at each position, whose "
            "errors are not independent. Use data with one class of each example."
        )
    data.train.check_one_input()
    check_split_values(data)
    show = sys.stderr.isatty() if show_progress is None else show_progress
    flatness, config = resolve_component(flatness, Flatness, "flatness"), resolve_config(config)
    prior_rows, bound_rows = split_prior_and_bound(len(data.train), certification_config.prior_fraction, seed)
    bound_set = data.train.take(bound_rows)
    prior_network = train_prior_network(model, data, prior_rows, flatness, config, seed=seed, show_progress=show)
    likelihood = Categorical(data.num_classes)
    fit_seed, trial_seed, draw_seed, test_seed = (
        spawn_seed(stream, seed)
        for stream in (
            Stream.CERTIFICATE_FIT,
            Stream.CERTIFICATE_TRIALS,
            Stream.CERTIFICATE_DRAWS,
            Stream.CERTIFICATE_TEST,
        )
    )

    trials = []
    for prior_std in _track_progress(certification_config.prior_stds, "fitting posteriors", show):
        posterior = make_gaussian_posterior(prior_std, certification_config.kl_weight)
        state = fit_gaussian(posterior, prior_network, bound_set, likelihood, certification_config, config, fit_seed)
        trials.append(_evaluate_prior(posterior, state, bound_set, certification_config, trial_seed))
    best = min(trials, key=lambda trial: trial.bound)

    num_draws, delta, delta_mc = (
        certification_config.num_draws,
        certification_config.delta,
        certification_config.delta_mc,
    )
    losses = measure_losses(
        best.posterior, best.state, bound_set, certification_config, num_draws, draw_seed, show_progress=show
    )
    error, cross_entropy = (
        compute_certificate_from_draws(values, best.prior_scale.complexity, len(bound_set), delta, delta_mc)
        for values in (losses.errors, losses.cross_entropies)
    )
    prior_error = compute_error_rate(prior_network, bound_set, FORWARD_BATCH_FACTOR * certification_config.batch_size)
    return CertificationResult(
        flatness=short_name(flatness),
        num_prior_examples=len(prior_rows),
        num_weights=best.state.statistics["mean"].numel(),
        prior_std=best.prior_scale.scale,
        kl=best.prior_scale.kl,
        error=error,
        cross_entropy=cross_entropy,
        prior_error=prior_error,
        holdout_bound=holdout_bound(prior_error, len(bound_set), delta + delta_mc),
        test=_estimate_test_errors(best, prior_network, data.test, likelihood, certification_config, test_seed),
    )


def measure_losses(
    posterior: Posterior,
    state: State,
    split: Split,
    certification_config: CertificationConfig,
    num_draws: int,
    seed: int,
    *,
    show_progress: bool = False,
) -> DrawLosses:
    """Mean losses, on a data split, of networks drawn from the posterior."""
    batch_size = FORWARD_BATCH_FACTOR * certification_config.batch_size
    outputs = predict_draws(posterior, state, split.input_tensor, num_draws, seed=seed, batch_size=batch_size)
    tracked = _track_progress(outputs, "measuring networks", show_progress, num_draws)
    return compute_losses(tracked, split, certification_config.min_probability)


@dataclass(frozen=True, eq=False)
class _PriorTrial:
    """A posterior fitted with one of the priors.

    The bound is an estimate, by which the prior is selected.
    """

    posterior: Posterior
    state: State
    prior_scale: PriorScale
    bound: float


def _evaluate_prior(
    posterior: Posterior, state: State, split: Split, certification_config: CertificationConfig, seed: int
) -> _PriorTrial:
    prior_scale = compute_divergence(state, certification_config.prior_stds)
    num_draws = certification_config.num_trial_draws
    errors = measure_losses(posterior, state, split, certification_config, num_draws, seed).errors
    certificate = compute_certificate_from_draws(
        errors, prior_scale.complexity, len(split), certification_config.delta, certification_config.delta_mc
    )
    # The Monte Carlo term is left out: the trial has few draws, the certificate many.
    return _PriorTrial(posterior, state, prior_scale, inverse_kl(certificate.empirical_error, certificate.complexity))


def _estimate_test_errors(
    trial: _PriorTrial,
    prior_network: FrozenNetwork,
    split: Split,
    likelihood: Categorical,
    certification_config: CertificationConfig,
    seed: int,
) -> ErrorEstimates:
    batch_size, num_draws = (
        FORWARD_BATCH_FACTOR * certification_config.batch_size,
        certification_config.num_test_draws,
    )
    logits = list(
        predict_draws(trial.posterior, trial.state, split.input_tensor, num_draws, seed=seed, batch_size=batch_size)
    )
    predictive = likelihood.predictive(logits)
    return ErrorEstimates(
        num_data=len(split),
        gibbs_error=float(compute_losses(logits, split, certification_config.min_probability).errors.mean()),
        ensemble_error=float((predictive.top_class != split.targets).double().mean()),
        prior_error=compute_error_rate(prior_network, split, batch_size),
    )


def _track_progress(items: Iterable[T], description: str, show: bool, total: int | None = None) -> Iterable[T]:
    return track(items, description, total=total, console=PlainConsole(stderr=True), transient=True, disable=not show)
