"""Sums over networks of their class probabilities and entropies, in float64.

Probabilities are added as they are, which takes one exponential and no logarithm for each network, and in log space
where they may underflow. Logits are converted a block at a time, so that intermediate results stay in the cache.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import BLOCK_ELEMENTS, is_accelerator, iter_row_blocks, to_double
from flatbayes.likelihoods.categorical_predictive import categorical_entropy

MIN_EXPONENT = -700.0
"""Least difference of two logits of an example whose exponential is a normal number of float64."""


class CategoricalSums:
    """Sums over networks, which are added one after the other, for the same examples.

    Attributes:
        count: Number of networks.
    """

    count = 0
    _probs: Tensor
    _squared_deviations: Tensor
    _entropies: Tensor
    _log_probs: dict[int, Tensor]
    """Logarithm of the sum of the probabilities of each block in log space, by its first row."""

    def add(self, logits: Float[Tensor, "examples classes"]) -> None:
        """Add the probabilities of a network."""
        if not self.count:
            self._probs = to_double(logits[:0]).new_zeros(logits.shape)
            self._squared_deviations = torch.zeros_like(self._probs)
            self._entropies = self._probs.new_zeros(len(logits))
            self._log_probs = {}
        self.count += 1
        for rows in iter_row_blocks(logits):
            self._add_block(rows, logits[rows])

    def add_stacked(self, logits: Float[Tensor, "networks examples classes"]) -> None:
        """Add the probabilities of several networks, in few operations if they are the first and fit into a block."""
        if self.count or logits.numel() > BLOCK_ELEMENTS:
            for network_logits in logits:
                self.add(network_logits)
            return
        self.count = len(logits)
        log_probs = to_double(logits).log_softmax(-1)
        is_extreme = is_accelerator(logits) or float(log_probs.detach().amin()) < MIN_EXPONENT
        probs = log_probs.exp()
        finite = log_probs.clamp_min(torch.finfo(log_probs.dtype).min) if is_extreme else log_probs  # 0 log 0 = 0
        self._probs = probs.sum(0)
        self._entropies = torch.linalg.vecdot(probs, finite).sum(0).neg_()
        self._squared_deviations = torch.sub(probs, self._probs, alpha=1 / self.count).square_().sum(0)
        self._log_probs = {0: log_probs.logsumexp(0)} if is_extreme else {}

    def _add_block(self, rows: slice, logits: Tensor) -> None:
        # The largest of the block is at least that of an example. Reading it would wait for an accelerator.
        is_extreme = rows.start in self._log_probs or is_accelerator(logits)
        if not is_extreme:
            low, high = map(float, logits.detach().aminmax())
            is_extreme = low - high < MIN_EXPONENT
        shifted = to_double(logits)
        shifted = shifted - shifted.amax(-1, keepdim=True)
        probs = shifted.exp()
        sums = probs.sum(-1, keepdim=True)
        log_sums = sums.log()
        finite = shifted.clamp_min(torch.finfo(shifted.dtype).min) if is_extreme else shifted  # 0 log 0 = 0
        dots = torch.linalg.vecdot(probs, finite)
        self._entropies[rows] += torch.addcdiv(log_sums.squeeze(-1), dots, sums.squeeze(-1), value=-1)
        if is_extreme:
            if rows.start not in self._log_probs:
                self._log_probs[rows.start] = self._probs[rows].log()
            log_probs = self._log_probs[rows.start]
            torch.logaddexp(log_probs, shifted - log_sums, out=log_probs)
        probs *= sums.reciprocal()
        if self.count > 1:  # Welford's algorithm
            deviation = torch.sub(probs, self._probs[rows], alpha=1 / (self.count - 1))
            self._squared_deviations[rows].addcmul_(deviation, deviation, value=1 - 1 / self.count)
        self._probs[rows] += probs

    def compute_means(
        self,
    ) -> tuple[Float[Tensor, "examples classes"], Float[Tensor, " examples"], Float[Tensor, "examples classes"]]:
        """Log of the mean probabilities, mean entropy, and variance of the probabilities, in place of the sums."""
        for rows in iter_row_blocks(self._probs):
            if rows.start in self._log_probs:
                torch.sub(self._log_probs[rows.start], math.log(self.count), out=self._probs[rows])
            else:
                self._probs[rows].div_(self.count).log_()
            self._squared_deviations[rows].div_(self.count)
        # One network has no mutual information, to the last digit.
        entropy = categorical_entropy(self._probs) if self.count == 1 else self._entropies / self.count
        return self._probs, entropy, self._squared_deviations
