"""Labels that are not known: examples without any are left out, and the likelihood knows how they are marked."""

from dataclasses import replace

from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.data import DataSplits
from flatbayes.likelihoods import Bernoulli, DenseCategorical, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.training.data import InMemoryData


def drop_unlabelled(data: DataSplits, ignore_index: int = IGNORE_INDEX) -> DataSplits:
    """The splits without the examples none of whose labels is known, as `num_data` and mean losses need them.

    Raises:
        ValueError: No label of the training examples is known.
    """
    if not (data.is_multi_label or data.is_dense):
        return data
    known = {name: (getattr(data, name).targets != ignore_index).flatten(1).any(1) for name in ("train", "val")}
    if not known["train"].any():
        raise ValueError("No label of the training examples is known. Training needs labelled examples.")
    dropped = {name: getattr(data, name).take(rows.nonzero()[:, 0]) for name, rows in known.items() if not rows.all()}
    return replace(data, **dropped)


def match_position_labels(data: InMemoryData, likelihood: Likelihood) -> InMemoryData:
    """The data with names of the classes of the likelihood, and without examples that it has no label of.

    They are returned as they are unless each position of an example has a class.

    Raises:
        ValueError: A label is no class of the likelihood, or none is known.
    """
    inner, splits = unwrap_custom(likelihood), data.splits
    if not splits.is_dense or not isinstance(inner, DenseCategorical):
        return data
    for split in (splits.train, splits.val):
        if len(split):
            inner.prepare_targets(split.targets)
    splits = drop_unlabelled(splits, inner.ignore_index)
    names = splits.class_names[: inner.num_classes]
    names += tuple(str(k) for k in range(len(names), inner.num_classes))
    augment = splits.augment and replace(splits.augment, ignore_index=inner.ignore_index)
    num_held_out = min(data.num_held_out, len(splits.val))
    return replace(data, splits=replace(splits, class_names=names, augment=augment), num_held_out=num_held_out)


def check_ignore_index(data: DataSplits, likelihood: Likelihood) -> None:
    """Check that a likelihood of several labels knows how data splits mark a label that is not known.

    Raises:
        ValueError: It has another mark, so that the labels that are not known would be targets.
    """
    likelihood = unwrap_custom(likelihood)
    if not isinstance(likelihood, Bernoulli) or likelihood.ignore_index == IGNORE_INDEX or not data.is_multi_label:
        return
    if any(bool((split.targets == IGNORE_INDEX).any()) for split in (data.train, data.val)):
        raise ValueError(
            f"Labels that are not known are {IGNORE_INDEX} in these data, also where they were NaN, and the "
            f"likelihood has ignore_index={likelihood.ignore_index}: leave ignore_index out."
        )
