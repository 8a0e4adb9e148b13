"""Losses in [0, 1] of networks drawn from a posterior: error rate and truncated cross entropy."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core import State
from flatbayes.data import Split
from flatbayes.posteriors import Posterior


def truncated_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"], min_probability: float
) -> Float[Tensor, " batch"]:
    """min(-log p_y, log(1/s)) / log(1/s): 0 if p_y = 1, and 1 if p_y <= s.

    Source: Pérez-Ortiz et al. (JMLR 2021), section 4.

    `min_probability` is s.
    """
    max_loss = math.log(1 / min_probability)
    log_probs = logits.double().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return (-log_probs).clamp(0, max_loss) / max_loss


@dataclass(frozen=True, eq=False)
class DrawLosses:
    """Mean losses of networks on a data split.

    Each has one value for each network.
    """

    errors: Float[Tensor, " draws"]
    cross_entropies: Float[Tensor, " draws"]


def predict_draws(
    posterior: Posterior, state: State, inputs: Tensor, num_draws: int, *, seed: int, batch_size: int
) -> Iterator[Float[Tensor, "examples classes"]]:
    """Logits of independently drawn networks, on the CPU, one network at a time; buffers are those of the model."""
    device = next(state.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for _ in range(num_draws):
        with posterior.draw(state, generator) as network, torch.no_grad():
            outputs = torch.cat([network(batch.to(device)) for batch in inputs.split(batch_size)]).cpu()
        yield outputs


def compute_losses(outputs: Iterable[Tensor], split: Split, min_probability: float) -> DrawLosses:
    """Both losses of each network."""
    errors, cross_entropies = [], []
    for logits in outputs:
        errors.append((logits.argmax(-1) != split.targets).double().mean())
        cross_entropies.append(truncated_cross_entropy(logits, split.targets, min_probability).mean())
    return DrawLosses(torch.stack(errors), torch.stack(cross_entropies))
