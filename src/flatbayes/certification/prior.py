"""Data-dependent prior: a network trained on one part of the training split, and fixed afterwards.

Pérez-Ortiz et al. (JMLR 2021), section 5: the prior may depend on examples that the bound is not computed on.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.names import format_count
from flatbayes.core.network_calls import differentiable_recurrence
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP
from flatbayes.training import TrainingConfig, fit
from flatbayes.training.model_builder import ModelFactory


class FrozenNetwork(nn.Module):
    """A network that is always in eval mode, with the input transform before it.

    Running statistics stay constant while a posterior is fitted around the network, so that weights are the only
    thing that differs between draws.

    The likelihood has the logits of the classes for the outputs of the network; None if these are the outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        transform: Callable[[Tensor], Tensor] | None,
        likelihood: Categorical | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.transform = transform
        self.likelihood = likelihood

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        inputs = x if self.transform is None else self.transform(x)
        inputs = cast_inputs(self.network, inputs.to(next(self.network.parameters()).device))
        with eval_mode(self.network), differentiable_recurrence(self.network):
            outputs: Tensor = self.network(inputs)
        return outputs if self.likelihood is None else self.likelihood.to_logits(outputs)


def split_prior_and_bound(num_data: int, prior_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random partition into rows for the prior and rows for the bound, independent of the examples.

    Returns:
        Row indices of the prior set and of the bound set; disjoint, together all rows.

    Raises:
        ValueError: One of the two sets would be empty.
    """
    num_prior = round(prior_fraction * num_data)
    if not 0 < num_prior < num_data:
        raise ValueError(
            f"prior_fraction={prior_fraction:g} of {format_count(num_data, 'training example')} leaves {num_prior} "
            f"for the prior and {num_data - num_prior} for the bound; both need one. Change prior_fraction, or give "
            "more examples."
        )
    order = torch.randperm(num_data, generator=make_generator(Stream.CERTIFICATE_SPLIT, seed))
    return order[:num_prior], order[num_prior:]


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
    """Train a network on some rows of the training split only; its inputs are standardized by these rows too.

    Validation examples are used for curves, early stopping and what is chosen automatically.
    """
    prior_data = replace(data, train=data.train.take(rows))
    fitted = fit(model, prior_data, MAP(), flatness, config, seed=seed, show_progress=show_progress)
    likelihood = fitted.likelihood
    assert isinstance(likelihood, Categorical)  # of labels
    return FrozenNetwork(fitted.states[0].model, fitted.transform, likelihood).eval()


@torch.no_grad()
def compute_error_rate(network: nn.Module, split: Split, batch_size: int) -> float:
    """Fraction of examples that the network classifies wrongly."""
    logits = torch.cat([network(batch).cpu() for batch in split.input_tensor.split(batch_size)])
    return float((logits.argmax(-1) != split.targets).double().mean())
