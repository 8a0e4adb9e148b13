"""Who learns and who judges: examples dealt into training, validation and test parts, class by class.

The test part depends on `split_seed` and its own size only, so that no choice of a run can move it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TEST_STREAM, VAL_STREAM, TRAIN_STREAM = 0, 1, 2  # streams of randomness


def stratified_split(
    targets: Tensor, *, train_size: int | None, val_size: float, test_size: float, split_seed: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers of the training, the validation and the test part: disjoint, each in random order.

    Args:
        targets: The class of each example, [n].
        train_size: Examples to train on; None takes all that are left.
        val_size: Fraction of what the test part leaves if below 1, else a count.
        test_size: Fraction of all if below 1, else a count.
        split_seed: Decides the test part.
        seed: Decides, together with `split_seed`, the other two.

    Raises:
        ValueError: There are too few examples.
    """
    total = len(targets)
    num_test = resolve_size(test_size, total, "test_size")
    chosen, rest = draw_stratified(targets, num_test, [split_seed, TEST_STREAM])
    # From here on in the order of the file, whatever the order in which the test part left the others.
    rest = rest.sort().values
    num_val = resolve_size(val_size, len(rest), "val_size")
    chosen_val, left = draw_stratified(targets[rest], num_val, [split_seed, VAL_STREAM, seed])
    num_train = len(left) if train_size is None else train_size
    if num_train > len(left):
        raise ValueError(
            f"train_size={train_size} examples were asked for, and {len(left)} are left for training of {total} "
            f"({num_test} went to the test and {num_val} to the validation part). Lower train_size."
        )
    chosen_train, _ = draw_stratified(targets[rest[left]], num_train, [split_seed, TRAIN_STREAM, seed])
    return rest[left[chosen_train]], rest[chosen_val], chosen


def resolve_size(size: float, total: int, name: str) -> int:
    """The number of examples that a fraction (below 1) or a count stands for.

    Raises:
        ValueError: That is more than there are.
    """
    count = round(size * total) if size < 1 else int(size)
    if count > total:
        raise ValueError(f"{name}={size:g} examples were asked for, and there are only {total}. Lower {name}.")
    return count


def check_size(size: float, name: str) -> None:
    """Refuse what is neither a fraction nor a count."""
    if not (0 <= size < 1 or (math.isfinite(size) and size >= 1 and size == int(size))):
        raise ValueError(
            f"{name} is a fraction of the examples (from 0, below 1) or a whole number of them, got {size}."
        )


def draw_stratified(targets: Tensor, size: int, entropy: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`size` rows drawn in proportion to the classes, and all the others; both in random order.

    Args:
        targets: The class of each example, [n].
        size: At most n.
        entropy: The seed, in any number of non-negative integers.
    """
    generator = np.random.default_rng(entropy)
    order = torch.from_numpy(generator.permutation(len(targets)))
    classes, labels = torch.unique(targets, return_inverse=True)
    counts = torch.bincount(labels, minlength=len(classes))
    # Rank of each example among those of its class, in random order: the first `quota` of them are chosen.
    by_class = order[labels[order].argsort(stable=True)]
    starts = (counts.cumsum(0) - counts)[labels[by_class]]
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - starts
    chosen = (rank < compute_class_quotas(counts, size)[labels])[order]
    return order[chosen], order[~chosen]


def compute_class_quotas(counts: Tensor, size: int) -> Tensor:
    """How many of each class make `size` in proportion to `counts`, by the largest remainder.

    Args:
        counts: Examples of each class, [classes].
        size: At most their sum.

    Returns:
        Integers that sum to `size`, each within 1 of `size * counts / counts.sum()`, none above its count.

    Examples:
        >>> compute_class_quotas(torch.tensor([50, 30, 20]), 9)
        tensor([4, 3, 2])
    """
    total = max(int(counts.sum()), 1)
    share, remainder = counts * size // total, counts * size % total
    missing = size - int(share.sum())
    share[remainder.argsort(descending=True, stable=True)[:missing]] += 1
    return share
