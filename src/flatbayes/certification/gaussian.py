"""The posterior of a certificate: a Gaussian around the prior network, over every weight that is not frozen.

It is SGVB (`flatbayes.posteriors.sgvb`) with its prior centred at the prior network and the latter settled: the KL
divergence counts all that is learnt from the examples of the bound, since nothing else may move.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes.certification.plan import Plan
from flatbayes.certification.settled import Settled
from flatbayes.core import State
from flatbayes.core.weights import trainable
from flatbayes.data import Part
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import std_of_raw
from flatbayes.theory import PriorScale, best_prior_scale
from flatbayes.training import Cosine, Recipe, fit


def gaussian(prior_std: float, temperature: float) -> SGVB:
    """The family of posteriors: it starts as the prior itself, N(network, prior_std² I)."""
    return SGVB(
        prior_precision=1 / prior_std**2,
        temperature=temperature,
        initial_std=prior_std,
        bayesian="all",
        prior_mean="initial",
    )


def fit_gaussian(
    posterior: SGVB, settled: Settled, part: Part, likelihood: Likelihood, plan: Plan, recipe: Recipe, seed: int
) -> State:
    """Fit the posterior to the examples of the bound, on which it may depend in any way that the KL counts.

    Args:
        posterior: The family, from `gaussian`.
        settled: The prior network, which is copied.
        part: Examples of the bound.
        likelihood: The loss.
        plan: How long and how fast.
        recipe: Device and precision are taken from here.
        seed: Decides order and noise.

    Raises:
        RuntimeError: Something other than the weights with a distribution has changed.
    """
    if plan.epochs == 0:
        return posterior.init(settled, None, len(part))
    how = Recipe(
        epochs=plan.epochs,
        optimizer=partial(torch.optim.Adam, lr=plan.lr),
        schedule=Cosine(),
        precision=recipe.precision,
        accelerator=recipe.accelerator,
        validations=0,
    )
    batches = _loader(part, plan.batch_size, seed)
    fitted = fit(settled, batches, posterior, Plain(), how, likelihood=likelihood, seed=seed, progress=False)
    state = replace(fitted.states[0], model=fitted.states[0].model.eval())
    check_settled(settled, state)
    return state


def check_settled(settled: nn.Module, state: State) -> None:
    """Refuse a posterior whose draws have learnt anything that the KL does not count.

    Raises:
        RuntimeError: A buffer or a frozen parameter has changed, or a trainable one has no distribution.
    """
    now, before = state.model.state_dict(), settled.state_dict()
    moving = {name for name, param in settled.named_parameters() if param.requires_grad}
    moved = [name for name, was in before.items() if name not in moving and not torch.equal(was, now[name].to(was))]
    if moved:
        raise RuntimeError(
            f"{', '.join(moved)} changed while the posterior was fitted, in eval mode, and the divergence does not "
            "count it, so nothing could be promised. Make it constant in eval mode."
        )
    counted, learnt = state.statistics["mean"].numel(), sum(param.numel() for param in trainable(settled))
    if counted != learnt:
        raise RuntimeError(
            f"Only {counted} of {learnt} trainable weights have a distribution, so nothing could be promised."
        )


def divergence(state: State, prior_stds: tuple[float, ...]) -> PriorScale:
    """KL of the posterior from the nearest of the priors, and the price of choosing that one."""
    statistics = state.statistics
    std = std_of_raw(statistics["raw_scale"].detach())
    return best_prior_scale(statistics["mean"], std, statistics["prior_mean"], prior_stds)


def _loader(part: Part, batch_size: int, seed: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    examples = TensorDataset(part.tensor, part.targets)
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(examples, generator=generator)
    batches = BatchSampler(order, min(batch_size, len(part)), drop_last=True)
    return DataLoader(examples, sampler=batches, batch_size=None, generator=generator)
