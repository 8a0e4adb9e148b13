"""Stratified train/validation/test split, and validation examples that are held out of the training examples.

The test split depends on `split_seed` and on its own size only, so the seed of a run does not change it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.splits import DataSplits

TEST_STREAM, VAL_STREAM, TRAIN_STREAM = 0, 1, 2
"""Second entry of the entropy [split_seed, stream, ...], which keeps the three apart. They are not streams of
`core.randomness`, so that the test split of version 0.1 is the same: else an older run would be evaluated on examples
that it was trained on."""
HELD_OUT_FRACTION = 0.15
"""Fraction of the training examples that is held out where a training needs validation examples and has none."""
MIN_HELD_OUT, MAX_HELD_OUT = 10, 2000
"""Fewest and most examples that are held out; where the fraction is fewer, all train."""


def stratified_split(
    targets: Tensor, *, train_size: int | None, val_size: float, test_size: float, split_seed: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split examples in proportion to their classes.

    A class with three or more examples outside the test split has one in the validation split, and each class that is
    left has one in the training split, also where less than half of one is its share.

    Args:
        targets: Class of each example, [n].
        train_size: Number of training examples; None for all that remain.
        val_size: Fraction of what the test split leaves if below 1, else a number of examples.
        test_size: Fraction of all examples if below 1, else a number of examples.
        split_seed: Seed of the test split.
        seed: Seed, together with `split_seed`, of the training and the validation split.

    Returns:
        Row numbers of the training, the validation and the test split: disjoint, each in random order.

    Raises:
        ValueError: There are too few examples.
    """
    total = len(targets)
    num_test = resolve_size(test_size, total, "test_size")
    test, remaining = draw_stratified(targets, num_test, [split_seed, TEST_STREAM])
    # Sorted, so that the next draws do not depend on the order in which the first one left the rows.
    remaining = remaining.sort().values
    num_val = resolve_size(val_size, len(remaining), "val_size")
    val, available = draw_stratified(targets[remaining], num_val, [split_seed, VAL_STREAM, seed], covered_count=3)
    num_train = len(available) if train_size is None else train_size
    if num_train > len(available):
        raise ValueError(
            f"train_size={train_size} examples were asked for, and {len(available)} are left for training of {total} "
            f"({num_test} went to the test and {num_val} to the validation split). Lower train_size."
        )
    entropy = [split_seed, TRAIN_STREAM, seed]
    train, _ = draw_stratified(targets[remaining[available]], num_train, entropy, covered_count=1)
    return remaining[available[train]], remaining[val], test


def resolve_size(size: float, total: int, name: str) -> int:
    """Convert a fraction (below 1) or a number of examples to a number of examples.

    Raises:
        ValueError: The number exceeds `total`.
    """
    count = round(size * total) if size < 1 else int(size)
    if count > total:
        raise ValueError(f"{name}={size:g} examples were asked for, and there are only {total}. Lower {name}.")
    return count


def check_size(size: float, name: str) -> None:
    """Check that a size is a fraction or a number of examples."""
    if not (0 <= size < 1 or (math.isfinite(size) and size >= 1 and size == int(size))):
        raise ValueError(
            f"{name} is a fraction of the examples (from 0, below 1) or a whole number of them, got {size}."
        )


def draw_stratified(
    targets: Tensor, size: int, entropy: Sequence[int], *, covered_count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `size` rows in proportion to the classes.

    Args:
        targets: Class of each example, [n].
        size: At most n.
        entropy: Seed, a sequence of non-negative integers.
        covered_count: Draw an example of every class that has so many or more, also where less than half of one is
            its share; None to draw by the shares only.

    Returns:
        The drawn rows and the remaining rows, both in random order.
    """
    generator = np.random.default_rng(entropy)
    order = torch.from_numpy(generator.permutation(len(targets)))
    classes, labels = torch.unique(targets, return_inverse=True)
    counts = torch.bincount(labels, minlength=len(classes))
    # Rank of each example within its class, in random order; the first `quota` examples of a class are drawn.
    by_class = order[labels[order].argsort(stable=True)]
    starts = (counts.cumsum(0) - counts)[labels[by_class]]
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - starts
    quotas = compute_class_quotas(counts, size)
    if covered_count is not None:
        quotas = cover_rare_classes(counts, quotas, covered_count)
    is_drawn = (rank < quotas[labels])[order]
    return order[is_drawn], order[~is_drawn]


def compute_class_quotas(counts: Tensor, size: int) -> Tensor:
    """Distribute `size` examples over classes in proportion to `counts`, by the largest remainder method.

    `size` is at most their sum.

    Returns:
        Integers that sum to `size`, each within 1 of `size * counts / counts.sum()`, none above its count.

    Examples:
        >>> compute_class_quotas(torch.tensor([50, 30, 20]), 9)
        tensor([4, 3, 2])
    """
    total = max(int(counts.sum()), 1)
    quotas, remainders = counts * size // total, counts * size % total
    missing = size - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    return quotas


def cover_rare_classes(counts: Tensor, quotas: Tensor, covered_count: int) -> Tensor:
    """Quotas with 1 in place of 0 for every class of `covered_count` or more examples, taken from the largest ones.

    They are unchanged where there are too few examples for this.

    Examples:
        >>> cover_rare_classes(torch.tensor([195, 3, 1]), torch.tensor([30, 0, 0]), covered_count=2)
        tensor([29,  1,  0])
    """
    missing = ((quotas == 0) & (counts >= covered_count)).nonzero().flatten().tolist()
    if len(missing) > int((quotas - 1).clamp_min(0).sum()):
        return quotas
    quotas = quotas.clone()
    for label in missing:
        quotas[quotas.argmax()] -= 1
        quotas[label] = 1
    return quotas


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
