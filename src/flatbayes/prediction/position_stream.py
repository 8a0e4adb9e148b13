"""Evaluation of a class at each position, a few examples at a time: all predictions may be larger than the memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.calibration.map_fitting import sum_position_losses
from flatbayes.core.batch_targets import split_batch
from flatbayes.core.input_trees import IGNORE_INDEX, make_inputs, slice_examples
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.likelihoods import CategoricalPredictive, DenseCategoricalPredictive
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.metrics.classification import ExampleScores, average_iou, count_classes, score_examples
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.labelled import LabelledBatches, mark_unlabelled, select_examples

MAX_PREDICTED_VALUES = 2**25
"""Largest number of probabilities that are in memory together for the checks, and for a calibration map."""


def stream_labelled(
    fitted: FittedPosterior, data: Any, targets: Any, num_draws: int, *, batch_size: int, **options: Any
) -> Iterator[tuple[DenseCategoricalPredictive, Tensor]]:
    """Yield predictions and targets of a few examples at a time, with `IGNORE_INDEX` at positions without a label.

    Raises:
        ValueError: The targets do not match the predictions, are missing, or none is known.
        TypeError: There are no targets.
    """
    likelihood = unwrap_custom(fitted.likelihood)
    inputs, targets = select_examples(fitted, data, targets, batch_size)
    all_labels = None if targets is None else likelihood.prepare_targets(torch.as_tensor(targets).cpu())
    if all_labels is not None and isinstance(inputs, Tensor | np.ndarray) and len(inputs) != len(all_labels):
        raise ValueError(
            f"There are {format_count(len(inputs), 'input')} and {format_count(len(all_labels), 'target')}. Give one "
            "target for each input, in the same order."
        )
    count, has_label = 0, False
    for predictive in fitted.stream_predictions(inputs, num_draws, batch_size=batch_size, **options):
        assert isinstance(predictive, DenseCategoricalPredictive)
        size = len(predictive.log_probs)
        if isinstance(inputs, LabelledBatches):
            labels = likelihood.prepare_targets(inputs.pop_targets(size))
        else:
            assert all_labels is not None
            labels = all_labels[count : count + size]
        count += size
        labels = mark_unlabelled(likelihood, labels)
        has_label = has_label or bool((labels != IGNORE_INDEX).any())
        yield predictive, labels
    if all_labels is not None and len(all_labels) != count:
        raise ValueError(
            f"There are {count} predictions and {len(all_labels)} targets. Give one target for each, in order."
        )
    if not has_label:
        raise ValueError("There are no labelled positions: every one has the ignore_index of the likelihood.")


def stream_example_losses(fitted: FittedPosterior, data: Any, num_draws: int, batch_size: int) -> Tensor:
    """As `calibration.map_fitting.compute_example_losses`, without all predictions in memory."""
    stream = stream_labelled(fitted, data, None, num_draws, batch_size=batch_size)
    pairs = [sum_position_losses(predictive, targets) for predictive, targets in stream]
    sums, counts = (torch.cat(values) for values in zip(*pairs, strict=True))
    return sums[counts > 0] * (int((counts > 0).sum()) / int(counts.sum()))


def sample_positions(
    fitted: FittedPosterior, data: Any, targets: Any, num_draws: int, **options: Any
) -> tuple[CategoricalPredictive, Tensor, int]:
    """Predictions and labels of labelled positions, random ones if all exceed `MAX_PREDICTED_VALUES`.

    Returns:
        The predictions, the labels, and the number of examples with a label.
    """
    generator, share, num_examples = make_generator(Stream.CALIBRATION_POSITIONS), 1.0, 0
    parts = list[tuple[CategoricalPredictive, Tensor, Tensor]]()
    for predictive, labels in stream_labelled(fitted, data, targets, num_draws, **options):
        num_examples += int((labels != IGNORE_INDEX).flatten(1).any(1).sum())
        flat, kept_labels = predictive.select_labelled(labels)
        parts.append(_keep_positions((flat, kept_labels, torch.rand(len(kept_labels), generator=generator)), share))
        num_classes = flat.log_probs.shape[1]
        while (count := sum(len(part[1]) for part in parts)) > 1 and count * num_classes > MAX_PREDICTED_VALUES:
            share /= 2
            parts = [_keep_positions(part, share) for part in parts]
    return (
        CategoricalPredictive.concatenate([part[0] for part in parts]),
        torch.cat([part[1] for part in parts]),
        num_examples,
    )


def _keep_positions(
    part: tuple[CategoricalPredictive, Tensor, Tensor], share: float
) -> tuple[CategoricalPredictive, Tensor, Tensor]:
    predictive, labels, order = part
    is_kept = order < share
    return predictive.select(is_kept.to(predictive.log_probs.device)), labels[is_kept], order[is_kept]


def limit_examples(fitted: FittedPosterior, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Evenly spaced examples whose predictions fit into the memory, where each position has a class.

    Inputs that are no tensor, array or dictionary of such are returned as they are, as with another likelihood.
    """
    if not fitted.likelihood.has_positions or not isinstance(inputs, Tensor | np.ndarray | Mapping):
        return inputs, targets
    count = max(1, MAX_PREDICTED_VALUES // (np.asarray(targets[0]).size * fitted.likelihood.num_outputs))
    if len(targets) <= count:
        return inputs, targets
    rows = torch.linspace(0, len(targets) - 1, count).long()
    if isinstance(inputs, np.ndarray):
        return inputs[rows.numpy()], targets[rows]
    return slice_examples(make_inputs(inputs), rows), targets[rows]


class FirstBatches:
    """The first batches, with at most `MAX_PREDICTED_VALUES` probabilities of classes of positions, at least one."""

    def __init__(self, batches: Iterable[Any], num_classes: int) -> None:
        self.batches, self.num_classes = batches, num_classes

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self.batches:
            size = split_batch(batch)[1].numel() * self.num_classes
            if count and count + size > MAX_PREDICTED_VALUES:
                return
            count += size
            yield batch


class PositionMetrics:
    """Scores of labelled positions, added example by example.

    `num_classes` is 0 before the first.
    """

    def __init__(self) -> None:
        self.num_classes = 0
        self._scores: list[ExampleScores] = []
        self._counts = torch.zeros(3, 0)
        self._sizes: list[Tensor] = []

    def add(self, predictive: DenseCategoricalPredictive, targets: Tensor) -> None:
        """Add examples, whose class indices are `IGNORE_INDEX` at positions without a label."""
        flat, labels = predictive.select_labelled(targets)
        if not len(labels):
            return
        self._sizes.append((targets != IGNORE_INDEX).flatten(1).sum(1))
        self.num_classes = flat.log_probs.shape[1]
        counts = count_classes(flat.top_class.cpu(), labels, self.num_classes)
        self._counts = self._counts + counts if self._scores else counts
        self._scores.append(score_examples(flat.log_probs, labels))

    def join_scores(self) -> ExampleScores:
        """The scores of all labelled positions."""
        names = [field.name for field in fields(ExampleScores)]
        return ExampleScores(*(torch.cat([getattr(scores, name) for scores in self._scores]) for name in names))

    def join_examples(self) -> Tensor:
        """The number of the example of each labelled position, in the same order."""
        sizes = torch.cat(self._sizes)
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    def compute(self, scores: ExampleScores) -> dict[str, float]:
        """All metrics of `DENSE_METRICS`, with the scores of `join_scores`."""
        return {**scores.metrics(), "mean_iou": average_iou(self._counts)}
