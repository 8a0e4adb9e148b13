"""Which examples to label next: batches by a score, such as the entropy or the mutual information.

The examples with the highest scores resemble each other, so that a batch of them teaches less than its size. Power
sampling (Kirsch et al., "Stochastic Batch Acquisition", TMLR 2023) draws the batch without replacement instead, each
time an example with a probability in proportion to score^power. Gumbel noise on the log scores does this at once
(Vieira, 2014; Kool et al., ICML 2019):

    the `count` largest of power log(score) + Gumbel noise
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.randomness import Stream, make_generator
from flatbayes.likelihoods.labels import to_tensor


def sample_batch(
    scores: Float[Tensor, " examples"] | Any, count: int, *, power: float = 1.0, seed: int = 0
) -> Int[Tensor, " count"]:
    """Draw the examples to label next, without replacement and in proportion to a power of their scores.

    Args:
        scores: Uncertainty of each example of the pool, at least 0, such as `predictive.mutual_information`.
        count: Number of examples to draw.
        power: 0 draws at random whatever the scores, 1 in proportion to them, and infinity takes the highest ones.
            Examples with score 0 are drawn, at random, only where no others are left, or with `power` 0.
        seed: The same seed draws the same examples; take another one in each round.

    Returns:
        Row numbers of the drawn examples, in the order of the draws, on the CPU.

    Raises:
        ValueError: A score is negative or not finite, `count` is not 1 to the number of examples, or `power` is
            negative.

    Examples:
        >>> scores = fitted.predict(inputs).mutual_information
        >>> len(sample_batch(scores, 20, seed=1))
        20
        >>> sample_batch(torch.tensor([0.1, 0.7, 0.0, 0.4]), 2, power=float("inf"))
        tensor([1, 3])
    """
    scores = to_tensor(scores).detach().cpu().double()
    if scores.ndim != 1 or not bool((scores.isfinite() & (scores >= 0)).all()):
        raise ValueError(
            "scores must be one number of at least 0 for each example, finite, got the shape "
            f"{tuple(scores.shape)}{describe_range(scores)}. Densities of a regression have entropies below 0: pass "
            "predictive.mutual_information, or the standard deviation over the networks, epistemic.sqrt(). For "
            "positions take a mean over those of an example."
        )
    if not 1 <= count <= len(scores):
        raise ValueError(f"count must be 1 to {len(scores)}, the number of examples in the pool, got {count}.")
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}.")
    generator = make_generator(Stream.ACQUISITION, seed)
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    noise = -(-uniform.log()).log()
    keys = noise if power == 0 else scores if math.isinf(power) else power * scores.log() + noise
    order = noise.argsort(descending=True)  # of examples with equal keys
    return order[keys[order].argsort(descending=True, stable=True)][:count]


def describe_range(scores: Tensor) -> str:
    """Lowest and highest score, for a message; nothing where there are none."""
    return f" and values from {float(scores.min()):g} to {float(scores.max()):g}" if scores.numel() else ""
