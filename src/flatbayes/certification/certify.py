"""Certificates from a prior that some of the data made: Pérez-Ortiz et al. (JMLR 2021), Dziugaite & Roy (2018).

A network trained on some of the training examples is the centre of the prior, a Gaussian around it fitted to the
others is the posterior, and the PAC-Bayes-kl bound of `flatbayes.theory.pac_bayes` on those others is the
certificate. Nothing is approximated but the integral over the posterior, whose error is paid for with `delta_mc`.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.data_split import split_prior_and_bound
from flatbayes.certification.frozen_network import FrozenNetwork
from flatbayes.certification.gaussian import compute_divergence, fit_gaussian, make_gaussian_posterior
from flatbayes.certification.losses import DrawLosses, compute_losses, predict_draws
from flatbayes.certification.result import CertificationResult, ErrorEstimates
from flatbayes.core import State
from flatbayes.core.randomness import spawn_seeds
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, Posterior
from flatbayes.theory import PriorScale, compute_certificate_from_draws, holdout_bound, inverse_kl
from flatbayes.training import TrainingConfig, fit
from flatbayes.training.model_builder import ModelFactory

T = TypeVar("T")
FORWARD_BATCH_FACTOR = 4
"""Examples of a forward pass, in batches of a step."""


def certify(
    model: nn.Module | ModelFactory,
    data: DataSplits,
    flatness: Flatness = SAM(),
    config: TrainingConfig = TrainingConfig(),
    certification_config: CertificationConfig = CertificationConfig(),
    *,
    seed: int = 0,
    show_progress: bool | None = None,
) -> CertificationResult:
    """Prove how good networks drawn from a posterior are, as far as the data allow.

    The training part is dealt into examples A for the prior and B for the bound. A network is trained on A; a
    Gaussian around it is fitted to B, for each prior of the plan; the one with the smallest bound in a trial is
    certified on B with fresh draws. The validation part is used only for curves, the test part only for estimates.
    `promise` says in words what is promised, and under which suppositions.

    Args:
        model: A class or function that builds the network, or a network that has not seen the data.
        data: The data, a classification.
        flatness: Where the gradients for the prior network are taken.
        config: How that is trained.
        certification_config: All other choices.
        seed: Decides everything random; fixed beforehand, as the plan is.
        show_progress: Show progress bars on standard error; by default if that is a terminal.

    Raises:
        ValueError: The data are no classification, or too few.
        RuntimeError: Training diverged, or the network keeps changing outside its weights.
    """
    if data.is_regression:
        raise ValueError(
            "There are certificates for classification only: errors of numbers have no bound. "
            "Use data whose targets are classes."
        )
    show = sys.stderr.isatty() if show_progress is None else show_progress
    prior_rows, bound_rows = split_prior_and_bound(len(data.train), certification_config.prior_fraction, seed)
    bound = data.train.take(bound_rows)
    settled = train_prior_network(model, data, prior_rows, flatness, config, seed=seed, show_progress=show)
    likelihood = Categorical(data.num_classes)
    fit_seed, trial_seed, draw_seed, test_seed = spawn_seeds(seed, 1, count=4)

    trials = []
    for prior_std in _track_progress(certification_config.prior_stds, "fitting posteriors", show):
        posterior = make_gaussian_posterior(prior_std, certification_config.kl_weight)
        state = fit_gaussian(posterior, settled, bound, likelihood, certification_config, config, fit_seed)
        trials.append(_evaluate_prior(posterior, state, bound, certification_config, trial_seed))
    best = min(trials, key=lambda trial: trial.bound)

    losses = measure_losses(
        best.posterior,
        best.state,
        bound,
        certification_config,
        certification_config.num_draws,
        draw_seed,
        show_progress=show,
    )
    error, cross_entropy = (
        compute_certificate_from_draws(
            values, best.prior_scale.complexity, len(bound), certification_config.delta, certification_config.delta_mc
        )
        for values in (losses.errors, losses.cross_entropies)
    )
    prior_error = _compute_error_rate(settled, bound, certification_config)
    return CertificationResult(
        flatness=short_name(flatness),
        num_prior_examples=len(prior_rows),
        num_weights=best.state.statistics["mean"].numel(),
        prior_std=best.prior_scale.scale,
        kl=best.prior_scale.kl,
        error=error,
        cross_entropy=cross_entropy,
        prior_error=prior_error,
        held_out_bound=holdout_bound(
            prior_error, len(bound), certification_config.delta + certification_config.delta_mc
        ),
        test=_estimate_test_errors(best, settled, data.test, likelihood, certification_config, test_seed),
    )


def train_prior_network(
    model: nn.Module | ModelFactory,
    data: DataSplits,
    rows: Tensor,
    flatness: Flatness,
    config: TrainingConfig,
    *,
    seed: int,
    show_progress: bool = False,
) -> FrozenNetwork:
    """The network trained on some rows of the training part, standardised by them; it sees no other row.

    Args:
        model: What is trained.
        data: The data.
        rows: Training examples for the prior.
        flatness: Where gradients are taken.
        config: How it is trained.
        seed: Decides everything random.
        show_progress: Show a progress bar.
    """
    own = replace(data, train=data.train.take(rows))
    fitted = fit(model, own, MAP(), flatness, config, seed=seed, show_progress=show_progress)
    return FrozenNetwork(fitted.states[0].model, fitted.transform).eval()


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
    """Losses on a part of the data of networks drawn from the posterior.

    Args:
        posterior: Draws them.
        state: What was fitted.
        split: The examples.
        certification_config: How losses are bounded, how large a forward pass is.
        num_draws: How many networks.
        seed: Decides which.
        show_progress: Show a progress bar.
    """
    batch_size = FORWARD_BATCH_FACTOR * certification_config.batch_size
    outputs = predict_draws(posterior, state, split.input_tensor, num_draws, seed=seed, batch_size=batch_size)
    shown = _track_progress(outputs, "measuring networks", show_progress, num_draws)
    return compute_losses(shown, split, certification_config.min_probability)


@dataclass(frozen=True, eq=False)
class _PriorTrial:
    """A posterior fitted with one of the priors, and roughly the bound that it will have."""

    posterior: Posterior
    state: State
    prior_scale: PriorScale
    bound: float


def _evaluate_prior(
    posterior: Posterior, state: State, split: Split, certification_config: CertificationConfig, seed: int
) -> _PriorTrial:
    nearest = compute_divergence(state, certification_config.prior_stds)
    errors = measure_losses(
        posterior, state, split, certification_config, certification_config.num_trial_draws, seed
    ).errors
    found = compute_certificate_from_draws(
        errors, nearest.complexity, len(split), certification_config.delta, certification_config.delta_mc
    )
    # Without the allowance for few draws, which will be many.
    return _PriorTrial(posterior, state, nearest, inverse_kl(found.empirical_error, found.complexity))


def _estimate_test_errors(
    trial: _PriorTrial,
    prior_network: FrozenNetwork,
    split: Split,
    likelihood: Categorical,
    certification_config: CertificationConfig,
    seed: int,
) -> ErrorEstimates:
    batch_size = FORWARD_BATCH_FACTOR * certification_config.batch_size
    drawn = predict_draws(
        trial.posterior,
        trial.state,
        split.input_tensor,
        certification_config.num_test_draws,
        seed=seed,
        batch_size=batch_size,
    )
    outputs = list(drawn)
    gibbs = compute_losses(outputs, split, certification_config.min_probability)
    ensemble = likelihood.predictive(outputs)
    return ErrorEstimates(
        num_data=len(split),
        gibbs_error=float(gibbs.errors.mean()),
        ensemble_error=float((ensemble.top_class != split.targets).double().mean()),
        prior_error=_compute_error_rate(prior_network, split, certification_config),
    )


@torch.no_grad()
def _compute_error_rate(network: FrozenNetwork, split: Split, certification_config: CertificationConfig) -> float:
    outputs = torch.cat(
        [
            network(batch).cpu()
            for batch in split.input_tensor.split(FORWARD_BATCH_FACTOR * certification_config.batch_size)
        ]
    )
    return float((outputs.argmax(-1) != split.targets).double().mean())


def _track_progress(items: Iterable[T], description: str, show: bool, total: int | None = None) -> Iterable[T]:
    return track(items, description, total=total, console=Console(stderr=True), transient=True, disable=not show)
