"""The posterior of a certificate: a Gaussian around the prior network, over every weight that is not frozen.

It is SGVB (`flatbayes.posteriors.sgvb`) with its prior centred at the prior network and the latter settled: the KL
divergence counts all that is learnt from the examples of the bound, since nothing else may move.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.frozen_network import FrozenNetwork
from flatbayes.core import State
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import Split
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.theory import PriorScale, select_prior_scale
from flatbayes.training import Cosine, DistributionConfig, PrecisionConfig, TrainingConfig, fit


def make_gaussian_posterior(prior_std: float, kl_weight: float) -> SGVB:
    """The family of posteriors: it starts as the prior itself, N(network, prior_std² I)."""
    return SGVB(
        prior_precision=1 / prior_std**2,
        temperature=kl_weight,
        initial_std=prior_std,
        params="all",
        prior_mean="initial",
    )


def fit_gaussian(
    posterior: SGVB,
    prior_network: FrozenNetwork,
    split: Split,
    likelihood: Likelihood,
    certification_config: CertificationConfig,
    config: TrainingConfig,
    seed: int,
) -> State:
    """Fit the posterior to the examples of the bound, on which it may depend in any way that the KL counts.

    Args:
        posterior: The family, from `gaussian`.
        prior_network: The prior network, which is copied.
        split: Examples of the bound.
        likelihood: The loss.
        certification_config: How long and how fast.
        config: Device and precision are taken from here.
        seed: Decides order and noise.

    Raises:
        RuntimeError: Something other than the weights with a distribution has changed.
    """
    if certification_config.epochs == 0:
        return posterior.init(prior_network, None, len(split))
    how = TrainingConfig(
        epochs=certification_config.epochs,
        optimizer=partial(torch.optim.Adam, lr=certification_config.lr),
        schedule=Cosine(),
        precision=PrecisionConfig(mode=config.precision.mode),
        distribution=DistributionConfig(accelerator=config.distribution.accelerator),
        num_validations=0,
    )
    batches = _make_loader(split, certification_config.batch_size, seed)
    fitted = fit(
        prior_network, batches, posterior, Plain(), how, likelihood=likelihood, seed=seed, show_progress=False
    )
    state = replace(fitted.states[0], model=fitted.states[0].model.eval())
    check_frozen(prior_network, state)
    return state


def check_frozen(prior_network: nn.Module, state: State) -> None:
    """Refuse a posterior whose draws have learnt anything that the KL does not count.

    Raises:
        RuntimeError: A buffer or a frozen parameter has changed, or a trainable one has no distribution.
    """
    now, before = state.model.state_dict(), prior_network.state_dict()
    moving = {name for name, param in prior_network.named_parameters() if param.requires_grad}
    moved = [name for name, was in before.items() if name not in moving and not torch.equal(was, now[name].to(was))]
    if moved:
        raise RuntimeError(
            f"{', '.join(moved)} changed while the posterior was fitted, in eval mode, and the divergence does not "
            "count it, so nothing could be promised. Make it constant in eval mode."
        )
    counted, learnt = (
        state.statistics["mean"].numel(),
        sum(param.numel() for param in trainable_parameters(prior_network)),
    )
    if counted != learnt:
        raise RuntimeError(
            f"Only {counted} of {learnt} trainable weights have a distribution, so nothing could be promised."
        )


def compute_divergence(state: State, prior_stds: tuple[float, ...]) -> PriorScale:
    """KL of the posterior from the nearest of the priors, and the price of choosing that one."""
    statistics = state.statistics
    std = raw_to_std(statistics["raw_scale"].detach())
    return select_prior_scale(statistics["mean"], std, statistics["prior_mean"], prior_stds)


def _make_loader(split: Split, batch_size: int, seed: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    examples = TensorDataset(split.input_tensor, split.targets)
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(examples, generator=generator)
    batches = BatchSampler(order, min(batch_size, len(split)), drop_last=True)
    return DataLoader(examples, sampler=batches, batch_size=None, generator=generator)
