"""Who makes the prior, and who judges."""

import torch
from torch import Tensor

from flatbayes.core.randomness import spawn


def halves(num_data: int, prior_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for the prior and rows for the bound: disjoint, all of them, dealt without a look at the examples.

    Args:
        num_data: Number of examples.
        prior_share: Share of them for the prior.
        seed: Decides which.

    Raises:
        ValueError: One of the two would be empty.
    """
    num_prior = round(prior_share * num_data)
    if not 0 < num_prior < num_data:
        raise ValueError(
            f"prior_share={prior_share:g} of {num_data} training examples leaves {num_prior} for the prior and "
            f"{num_data - num_prior} for the bound; both need one. Change prior_share, or give more examples."
        )
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(spawn(seed, count=1)[0]))
    return order[:num_prior], order[num_prior:]
