"""Gaussian posterior of a certificate: SGVB around the fixed prior network, over all its trainable weights.

The prior is N(w0, prior_std² I) with w0 the weights of the prior network. Buffers and frozen parameters are constant,
so that KL(Q || P) accounts for everything that is learnt from the bound set.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.prior import FrozenNetwork
from flatbayes.core import State
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import Split
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.theory import PriorScale, select_prior_scale
from flatbayes.training import Cosine, DistributionConfig, PrecisionConfig, TrainingConfig, fit


def make_gaussian_posterior(prior_std: float, kl_weight: float) -> SGVB:
    """Variational family whose initial value is the prior N(w0, prior_std² I)."""
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
    """Fit the posterior to the bound set.

    The prior network, whose weights are the prior mean, is copied; device and precision are those of `config`.

    Raises:
        RuntimeError: Something other than the weights with a distribution has changed.
    """
    if certification_config.epochs == 0:
        return posterior.init(prior_network, None, len(split))
    training_config = TrainingConfig(
        epochs=certification_config.epochs,
        optimizer=partial(torch.optim.Adam, lr=certification_config.lr),
        schedule=Cosine(),
        precision=PrecisionConfig(mode=config.precision.mode),
        distribution=DistributionConfig(accelerator=config.distribution.accelerator),
        num_validations=0,
    )
    examples = TensorDataset(split.input_tensor, split.targets)
    generator = make_generator(Stream.CERTIFICATE_ORDER, seed)
    order = RandomSampler(examples, generator=generator)
    batch_size = min(certification_config.batch_size, len(split))
    batches = DataLoader(
        examples, sampler=BatchSampler(order, batch_size, drop_last=True), batch_size=None, generator=generator
    )
    fitted = fit(
        prior_network,
        batches,
        posterior,
        Plain(),
        training_config,
        likelihood=likelihood,
        seed=seed,
        show_progress=False,
    )
    state = replace(fitted.states[0], model=fitted.states[0].model.eval())
    check_frozen(prior_network, state)
    return state


def check_frozen(prior_network: nn.Module, state: State) -> None:
    """Check that the posterior learnt nothing that the KL divergence does not account for.

    The model of the fitted state was a copy of the prior network.

    Raises:
        RuntimeError: A buffer or a frozen parameter has changed, or a trainable one has no distribution.
    """
    state_dict, prior_state_dict = state.model.state_dict(), prior_network.state_dict()
    trainable_names = {name for name, param in prior_network.named_parameters() if param.requires_grad}
    changed_names = [
        name
        for name, value in prior_state_dict.items()
        if name not in trainable_names and not torch.equal(value, state_dict[name].to(value))
    ]
    if changed_names:
        raise RuntimeError(
            f"{', '.join(changed_names)} changed while the posterior was fitted in eval mode. The KL divergence does "
            "not account for that, so no bound would hold. Make it constant in eval mode."
        )
    num_random = state.statistics["mean"].numel()
    num_trainable = sum(param.numel() for param in trainable_parameters(prior_network))
    if num_random != num_trainable:
        raise RuntimeError(
            f"Only {num_random} of {num_trainable} trainable weights have a distribution, so no bound would hold."
        )


def compute_divergence(state: State, prior_stds: tuple[float, ...]) -> PriorScale:
    """KL divergence from the nearest of the priors, and the complexity term with the cost of selection."""
    statistics = state.statistics
    std = raw_to_std(statistics["raw_scale"].detach())
    return select_prior_scale(statistics["mean"], std, statistics["prior_mean"], prior_stds)
