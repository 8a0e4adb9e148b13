"""Who makes the prior, and who judges."""

import torch
from torch import Tensor

from flatbayes.core.randomness import spawn_seeds


def split_prior_and_bound(num_data: int, prior_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for the prior and rows for the bound: disjoint, all of them, dealt without a look at the examples.

    Args:
        num_data: Number of examples.
        prior_fraction: Share of them for the prior.
        seed: Decides which.

    Raises:
        ValueError: One of the two would be empty.
    """
    num_prior = round(prior_fraction * num_data)
    if not 0 < num_prior < num_data:
        raise ValueError(
            f"prior_fraction={prior_fraction:g} of {num_data} training examples leaves {num_prior} for the prior and "
            f"{num_data - num_prior} for the bound; both need one. Change prior_fraction, or give more examples."
        )
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(spawn_seeds(seed, count=1)[0]))
    return order[:num_prior], order[num_prior:]
