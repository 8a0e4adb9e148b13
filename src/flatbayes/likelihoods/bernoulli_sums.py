"""Sums over networks of the probabilities of each label and of their entropies, in float64.

With a = |logit| and r = exp(-a), the likelier value of a label has the probability p = 1 / (1 + r), the other one
q = r p, and their entropy is log(1 + r) + a q. Probabilities are added as they are, and in log space where they may
underflow.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import is_accelerator, iter_row_blocks, to_double
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.categorical_sums import MIN_EXPONENT


class BernoulliSums:
    """Sums over networks, which are added one after the other, for the same examples.

    Attributes:
        count: Number of networks.
    """

    count = 0
    _probs: Tensor
    """Of the values 0 and 1, [2, examples, labels]."""
    _squared_deviations: Tensor
    _entropies: Tensor
    _log_probs: dict[int, Tensor]
    """Logarithm of the sum of the probabilities of each block in log space, by its first row."""

    def add(self, logits: Float[Tensor, "examples labels"]) -> None:
        """Add the probabilities of a network."""
        if not self.count:
            self._probs = to_double(logits[:0]).new_zeros(2, *logits.shape)
            self._squared_deviations, self._entropies = self._probs[0].clone(), self._probs[0].clone()
            self._log_probs = {}
        self.count += 1
        for rows in iter_row_blocks(logits):
            self._add_block(rows, to_double(logits[rows]))

    def _add_block(self, rows: slice, logits: Tensor) -> None:
        sizes = logits.abs()
        is_extreme = rows.start in self._log_probs or is_accelerator(logits)  # reading would wait for it
        is_extreme = is_extreme or float(sizes.detach().amax()) > -MIN_EXPONENT
        ratios = sizes.neg().exp()
        log_sums, top = ratios.log1p(), (1 + ratios).reciprocal()
        other = ratios * top
        finite = sizes.clamp_max(torch.finfo(sizes.dtype).max) if is_extreme else sizes  # infinity times 0
        self._entropies[rows] += log_sums + finite * other
        if is_extreme:
            if rows.start not in self._log_probs:
                self._log_probs[rows.start] = self._probs[:, rows].log()
            block_log_probs = torch.stack([-logits, logits]).clamp_max(0) - log_sums
            self._log_probs[rows.start] = self._log_probs[rows.start].logaddexp(block_log_probs)
        is_positive = logits > 0
        positive, negative = torch.where(is_positive, top, other), torch.where(is_positive, other, top)
        if self.count > 1:  # Welford's algorithm
            deviation = torch.sub(positive, self._probs[1, rows], alpha=1 / (self.count - 1))
            self._squared_deviations[rows].addcmul_(deviation, deviation, value=1 - 1 / self.count)
        self._probs[0, rows] += negative
        self._probs[1, rows] += positive

    def compute_means(
        self,
    ) -> tuple[
        Float[Tensor, "examples labels 2"], Float[Tensor, "examples labels"], Float[Tensor, "examples labels"]
    ]:
        """Log of the mean probabilities, mean entropies, and variance of the probability of a label."""
        log_probs = (self._probs / self.count).log()
        for start, block in self._log_probs.items():
            log_probs[:, start : start + block.shape[1]] = block - math.log(self.count)
        log_probs = log_probs.movedim(0, -1).contiguous()
        # One network has no mutual information, to the last digit.
        entropies = categorical_entropy(log_probs) if self.count == 1 else self._entropies / self.count
        return log_probs, entropies, self._squared_deviations / self.count
