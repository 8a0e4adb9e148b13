"""Mixing of samplers: split R-hat and effective sample size of predictions over snapshots and chains.

Each member is a chain. R-hat of independent draws is above 1 by chance, the more so the fewer there are: with N
normal draws in each of m half chains, R² = (N - 1) / N + F / N with F from the F distribution with m - 1 and
m (N - 1) degrees of freedom. Its quantile is the smallest limit that few snapshots allow.
"""

import math

import torch
from torch import Tensor

from flatbayes.checks.evidence import Evidence
from flatbayes.checks.report import Finding
from flatbayes.core.names import format_count
from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DenseCategoricalPredictive,
    NumberPredictive,
    Predictive,
)

MAX_R_HAT = 1.1
"""Largest R-hat of many draws."""
CHANCE_LEVEL = 0.99
"""Level of the quantile of R-hat of independent draws."""
MIN_SNAPSHOTS = 4
MAX_PROBED = 64
"""Largest number of inputs whose predictions are followed."""


def check_mixing(evidence: Evidence) -> Finding | str:
    """Whether the halves of a chain, and the chains, agree in their predictions."""
    fitted = evidence.fitted
    counts = {fitted.posterior.count_stored_snapshots(state) for state in fitted.states}
    if counts == {0}:
        return "the draws are independent, not those of a chain"
    if not fitted.posterior.snapshot_requirements.max_used:  # nothing is collected: all networks are trained
        return "the draws are particles, not those of a chain"
    num_snapshots = min(counts)
    if num_snapshots < MIN_SNAPSHOTS:
        return f"R-hat needs at least {MIN_SNAPSHOTS} snapshots, and there are {num_snapshots}"
    if len(counts) > 1 or evidence.inputs is None or fitted.snapshot_index((evidence.seed, 0, 0)) is None:
        return "the snapshots cannot be predicted with in their order"
    rows = evidence.probe_rows[:: max(1, -(-len(evidence.probe_rows) // MAX_PROBED))]
    num_draws = num_snapshots * len(fitted.states)
    if obstacle := evidence.find_obstacle(fitted, num_draws):
        return obstacle
    is_dense = isinstance(evidence.predictive, DenseCategoricalPredictive)
    parts = [
        order_chains(evidence, evidence.predict(fitted, part, num_draws, keep_members=True), num_draws)
        for part in rows.split(1 if is_dense else len(rows))  # predictions of many positions take much memory
    ]
    if any(part is None for part in parts):
        return "there are no predictions of single networks"
    chains = torch.cat([part for part in parts if part is not None], -1)
    r_hat, size = summarize_chains(chains)
    largest = max(MAX_R_HAT, find_chance_r_hat(len(fitted.states), num_snapshots))
    return Finding(
        "mixing",
        not r_hat > largest,
        "The chain has not mixed",
        f"split R-hat of the predictions is {r_hat:.3g} over {len(fitted.states)} x "
        f"{format_count(num_snapshots, 'snapshot')}, which are worth {size:.3g} independent draws (medians over "
        f"{format_count(chains.shape[-1], 'prediction')})",
        r_hat,
        f"at most {largest:.3g}",
        "more epochs, a larger learning rate, or an Ensemble of chains (then their agreement is tested too)",
    )


def order_chains(evidence: Evidence, predictive: Predictive, num_draws: int) -> Tensor | None:
    """Predictions of every snapshot, shape (chains, snapshots, predictions), in the order of the chain.

    Returns:
        Probabilities of the most probable class, or of the label with the largest entropy, or means; None for other
        predictions. For a class at each position those of the position with the largest entropy.
    """
    if isinstance(predictive, DenseCategoricalPredictive):
        predictive = predictive.select_uncertain()
    if isinstance(predictive, CategoricalPredictive) and predictive.member_probs is not None:
        top = predictive.top_class.to(predictive.member_probs.device)
        values = predictive.member_probs.gather(2, top.expand(len(predictive.member_probs), -1)[..., None])[..., 0]
    elif isinstance(predictive, BernoulliPredictive) and predictive.member_probs is not None:
        label = predictive.label_entropies.argmax(-1).to(predictive.member_probs.device)
        values = predictive.member_probs.gather(2, label.expand(len(predictive.member_probs), -1)[..., None])[..., 0]
    elif isinstance(predictive, NumberPredictive):
        values = predictive.member_means.flatten(1)
    else:
        return None
    fitted = evidence.fitted
    chains = values.new_empty(len(fitted.states), num_draws // len(fitted.states), values.shape[1])
    for sample_id, row in zip(fitted.sample_ids(num_draws, evidence.seed), values, strict=True):
        chains[sample_id[1], fitted.snapshot_index(sample_id)] = row
    return chains.cpu()


def summarize_chains(chains: Tensor) -> tuple[float, float]:
    """Medians over predictions of rank-normalised split R-hat and of the effective sample size.

    Predictions that are the same in all of `chains`, shape (chains, snapshots, predictions), are left out; if all
    are, R-hat is NaN and the size that of one draw.
    """
    r_hats = [split_r_hat(column, rank_normalized=True) for column in chains.unbind(-1)]
    sizes = [effective_sample_size(column) for column in chains.unbind(-1)]
    r_hat, size = (torch.tensor(values, dtype=torch.float64).nanmedian() for values in (r_hats, sizes))
    return float(r_hat), 1.0 if math.isnan(size) else float(size)


def find_chance_r_hat(num_chains: int, num_draws: int) -> float:
    """Quantile of split R-hat of independent normal draws.

    >>> round(find_chance_r_hat(1, 10), 2), round(find_chance_r_hat(4, 1000), 3)
    (1.75, 1.002)
    """
    from scipy.stats import f  # slow to import

    count, halves = num_draws // 2, 2 * num_chains
    return math.sqrt((count - 1 + f.ppf(CHANCE_LEVEL, halves - 1, halves * (count - 1))) / count)
