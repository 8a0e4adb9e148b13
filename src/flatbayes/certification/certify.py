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

from flatbayes.certification.certified import Certified, Estimate
from flatbayes.certification.gaussian import divergence, fit_gaussian, gaussian
from flatbayes.certification.halves import halves
from flatbayes.certification.losses import DrawLosses, losses_of_outputs, outputs_of_draws
from flatbayes.certification.plan import Plan
from flatbayes.certification.settled import Settled
from flatbayes.core import State
from flatbayes.core.randomness import spawn
from flatbayes.core.spec import label
from flatbayes.data import Dataset, Part
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import Point, Posterior
from flatbayes.theory import PriorScale, inverse_kl
from flatbayes.theory.pac_bayes import certificate_of_draws, held_out_bound
from flatbayes.training import Recipe, fit
from flatbayes.training.model import ModelFactory

T = TypeVar("T")
PASSES = 4
"""Examples of a forward pass, in batches of a step."""


def certify(
    model: nn.Module | ModelFactory,
    dataset: Dataset,
    flatness: Flatness = SAM(),
    recipe: Recipe = Recipe(),
    plan: Plan = Plan(),
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Certified:
    """Prove how good networks drawn from a posterior are, as far as the data allow.

    The training part is dealt into examples A for the prior and B for the bound. A network is trained on A; a
    Gaussian around it is fitted to B, for each prior of the plan; the one with the smallest bound in a trial is
    certified on B with fresh draws. The validation part is used only for curves, the test part only for estimates.
    `promise` says in words what is promised, and under which suppositions.

    Args:
        model: A class or function that builds the network, or a network that has not seen the data.
        dataset: The data, a classification.
        flatness: Where the gradients for the prior network are taken.
        recipe: How that is trained.
        plan: All other choices.
        seed: Decides everything random; fixed beforehand, as the plan is.
        progress: Show progress bars on standard error; by default if that is a terminal.

    Raises:
        ValueError: The data are no classification, or too few.
        RuntimeError: Training diverged, or the network keeps changing outside its weights.
    """
    if dataset.is_regression:
        raise ValueError(
            "There are certificates for classification only: errors of numbers have no bound. "
            "Use data whose targets are classes."
        )
    show = sys.stderr.isatty() if progress is None else progress
    prior_rows, bound_rows = halves(len(dataset.train), plan.prior_share, seed)
    bound = dataset.train.take(bound_rows)
    settled = prior_network(model, dataset, prior_rows, flatness, recipe, seed=seed, progress=show)
    likelihood = Categorical(dataset.num_classes)
    fit_seed, trial_seed, draw_seed, test_seed = spawn(seed, 1, count=4)

    trials = []
    for prior_std in _shown(plan.prior_stds, "fitting posteriors", show):
        posterior = gaussian(prior_std, plan.temperature)
        state = fit_gaussian(posterior, settled, bound, likelihood, plan, recipe, fit_seed)
        trials.append(_trial(posterior, state, bound, plan, trial_seed))
    best = min(trials, key=lambda trial: trial.bound)

    losses = measured(best.posterior, best.state, bound, plan, plan.draws, draw_seed, progress=show)
    error, cross_entropy = (
        certificate_of_draws(values, best.nearest.complexity, len(bound), plan.delta, plan.delta_mc)
        for values in (losses.errors, losses.cross_entropies)
    )
    prior_error = _error(settled, bound, plan)
    return Certified(
        flatness=label(flatness),
        num_prior=len(prior_rows),
        num_weights=best.state.statistics["mean"].numel(),
        prior_std=best.nearest.scale,
        kl=best.nearest.kl,
        error=error,
        cross_entropy=cross_entropy,
        prior_error=prior_error,
        held_out_bound=held_out_bound(prior_error, len(bound), plan.delta + plan.delta_mc),
        test=_estimate(best, settled, dataset.test, likelihood, plan, test_seed),
    )


def prior_network(
    model: nn.Module | ModelFactory,
    dataset: Dataset,
    rows: Tensor,
    flatness: Flatness,
    recipe: Recipe,
    *,
    seed: int,
    progress: bool = False,
) -> Settled:
    """The network trained on some rows of the training part, standardised by them; it sees no other row.

    Args:
        model: What is trained.
        dataset: The data.
        rows: Training examples for the prior.
        flatness: Where gradients are taken.
        recipe: How it is trained.
        seed: Decides everything random.
        progress: Show a progress bar.
    """
    own = replace(dataset, train=dataset.train.take(rows))
    fitted = fit(model, own, Point(), flatness, recipe, seed=seed, progress=progress)
    return Settled(fitted.states[0].model, fitted.transform).eval()


def measured(
    posterior: Posterior,
    state: State,
    part: Part,
    plan: Plan,
    num_draws: int,
    seed: int,
    *,
    progress: bool = False,
) -> DrawLosses:
    """Losses on a part of the data of networks drawn from the posterior.

    Args:
        posterior: Draws them.
        state: What was fitted.
        part: The examples.
        plan: How losses are bounded, how large a forward pass is.
        num_draws: How many networks.
        seed: Decides which.
        progress: Show a progress bar.
    """
    batch_size = PASSES * plan.batch_size
    outputs = outputs_of_draws(posterior, state, part.tensor, num_draws, seed=seed, batch_size=batch_size)
    shown = _shown(outputs, "measuring networks", progress, num_draws)
    return losses_of_outputs(shown, part, plan.smallest_probability)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A posterior fitted with one of the priors, and roughly the bound that it will have."""

    posterior: Posterior
    state: State
    nearest: PriorScale
    bound: float


def _trial(posterior: Posterior, state: State, part: Part, plan: Plan, seed: int) -> _Trial:
    nearest = divergence(state, plan.prior_stds)
    errors = measured(posterior, state, part, plan, plan.trial_draws, seed).errors
    found = certificate_of_draws(errors, nearest.complexity, len(part), plan.delta, plan.delta_mc)
    # Without the allowance for few draws, which will be many.
    return _Trial(posterior, state, nearest, inverse_kl(found.empirical_error, found.complexity))


def _estimate(
    trial: _Trial, settled: Settled, part: Part, likelihood: Categorical, plan: Plan, seed: int
) -> Estimate:
    batch_size = PASSES * plan.batch_size
    drawn = outputs_of_draws(
        trial.posterior, trial.state, part.tensor, plan.test_draws, seed=seed, batch_size=batch_size
    )
    outputs = list(drawn)
    gibbs = losses_of_outputs(outputs, part, plan.smallest_probability)
    ensemble = likelihood.predictive(outputs)
    return Estimate(
        num_data=len(part),
        gibbs_error=float(gibbs.errors.mean()),
        ensemble_error=float((ensemble.top_class != part.targets).double().mean()),
        prior_error=_error(settled, part, plan),
    )


@torch.no_grad()
def _error(network: Settled, part: Part, plan: Plan) -> float:
    outputs = torch.cat([network(batch).cpu() for batch in part.tensor.split(PASSES * plan.batch_size)])
    return float((outputs.argmax(-1) != part.targets).double().mean())


def _shown(items: Iterable[T], what: str, show: bool, total: int | None = None) -> Iterable[T]:
    return track(items, what, total=total, console=Console(stderr=True), transient=True, disable=not show)
