"""Validation examples that are held out of the training examples."""

from dataclasses import replace

import torch

from flatbayes.data.splits import DataSplits
from flatbayes.data.stratified_split import VAL_STREAM, draw_stratified

HELD_OUT_FRACTION = 0.15
"""Fraction of the training examples that is held out where a training needs validation examples and has none."""
MIN_HELD_OUT, MAX_HELD_OUT = 10, 2000
"""Fewest and most examples that are held out; where the fraction is fewer, all train."""


def hold_out_validation(data: DataSplits, fraction: float, seed: int) -> DataSplits:
    """Data with a validation split of random training examples; as they are where it would have too few.

    At least one example of every class stays in the training split.

    Args:
        data: Data whose validation split is empty.
        fraction: Fraction of the training examples, at most 2,000 of them.
        seed: Seed of the choice.
    """
    targets = data.train.targets
    num_val = min(round(fraction * len(targets)), MAX_HELD_OUT)
    if num_val < MIN_HELD_OUT:
        return data
    classes = torch.zeros(len(targets), dtype=torch.int64) if data.is_regression else targets
    first = {int(label): row for row, label in reversed(list(enumerate(classes.tolist())))}
    is_free = torch.ones(len(targets), dtype=torch.bool)
    is_free[list(first.values())] = False
    free = is_free.nonzero().flatten()
    val = free[draw_stratified(classes[free], min(num_val, len(free)), [seed, VAL_STREAM])[0]]
    is_train = torch.ones(len(targets), dtype=torch.bool)
    is_train[val] = False
    return replace(data, train=data.train.take(is_train.nonzero().flatten()), val=data.train.take(val.sort().values))
