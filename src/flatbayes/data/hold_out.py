"""Validation examples that are held out of the training examples."""

from dataclasses import replace

import torch
from torch import Tensor

from flatbayes.data.splits import DataSplits
from flatbayes.data.stratified_split import VAL_STREAM, draw_stratified

HELD_OUT_FRACTION = 0.15
"""Fraction of the training examples that is held out where a training needs validation examples and has none."""
MIN_HELD_OUT, MAX_HELD_OUT = 10, 2000
"""Fewest and most examples that are held out; where the fraction is fewer, all train."""


def hold_out_validation(data: DataSplits, fraction: float, seed: int) -> DataSplits:
    """Data with at most 2,000 random training examples as validation split; unchanged where it would have too few.

    At least one example of every class stays in the training split, and of a class with three or more one is held
    out, so that a rare class takes part in what validation examples decide.
    """
    rows = choose_held_out(
        data.train.targets, fraction, seed, has_classes=bool(data.class_names) and not data.is_dense
    )
    if rows is None:
        return data
    train, val = rows
    return replace(data, train=data.train.take(train), val=data.train.take(val))


def choose_held_out(
    targets: Tensor, fraction: float, seed: int, *, has_classes: bool
) -> tuple[Tensor, Tensor] | None:
    """Row numbers of the examples that train, and of those that are held out; None where these would be too few."""
    num_val = min(round(fraction * len(targets)), MAX_HELD_OUT)
    if num_val < MIN_HELD_OUT:
        return None
    classes = targets if has_classes else torch.zeros(len(targets), dtype=torch.int64)
    first = {int(label): row for row, label in reversed(list(enumerate(classes.tolist())))}
    is_free = torch.ones(len(targets), dtype=torch.bool)
    is_free[list(first.values())] = False
    free = is_free.nonzero().flatten()
    size, entropy = min(num_val, len(free)), [seed, VAL_STREAM]
    val = free[draw_stratified(classes[free], size, entropy, covered_count=2)[0]]
    is_train = torch.ones(len(targets), dtype=torch.bool)
    is_train[val] = False
    return is_train.nonzero().flatten(), val.sort().values
