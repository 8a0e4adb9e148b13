"""Trainings that a pilot compares on validation data: which they are, what they score, and which is better."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flatbayes.calibration.map_fitting import compute_difference_error
from flatbayes.core.files import JsonValue
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Likelihood
from flatbayes.training.radius import MIN_GAIN, format_scores, make_candidate
from flatbayes.training.run_factory import RunFactory

PRIOR_STEP = 10.0
"""Factor between two strengths of the prior that are tried."""
MAX_WEIGHT_DECAY = 0.1
"""Largest weight decay that is tried, or prior precision times temperature over the number of examples."""

MIN_FRACTION = 0.5
"""Fewest epochs of a training with a radius, as a fraction of those of the configuration."""


@dataclass(frozen=True)
class Candidate:
    """A training of a pilot.

    Attributes:
        radius: Radius of the flatness; None for a flatness whose radius is not chosen.
        start: Fraction of training from which on the radius is used, which is plain before.
        prior_factor: Factor on the precision of the prior.
        epochs: Number of epochs, before early stopping shortens them; None for that of the configuration.
    """

    radius: float | None = None
    start: float = 0.0
    prior_factor: float = 1.0
    epochs: int | None = None

    def apply_to(self, factory: RunFactory) -> RunFactory:
        """The factory of this training, with nothing left to choose."""
        flatness = factory.flatness
        if self.radius is not None:
            flatness = make_candidate(factory.auto_flatness or Plain(), self.radius, self.start)
        config = factory.config if self.epochs is None else replace(factory.config, epochs=self.epochs)
        fixed = replace(factory, config=config, flatness=flatness, auto_flatness=None, auto_prior=None)
        return fixed.with_prior_factor(self.prior_factor)


@dataclass(frozen=True)
class Score:
    """Validation NLL of the first network of a training; None where it diverged.

    Attributes:
        end: That at the end.
        best: The lowest one of all evaluations, with early stopping; otherwise that at the end.
        losses: NLL of every validation example at the end; None where it diverged, or no example has one of its own.
    """

    end: float | None
    best: float | None
    losses: Tensor | None = field(default=None, compare=False, repr=False)


def compute_relative_score(score: Score, reference: Score) -> float | None:
    """NLL of a training by its difference from a reference: the larger one of best evaluations and of ends.

    Posteriors without snapshots have the weights of the best evaluation, those with snapshots weights near the end.
    With the larger difference the choice does not depend on the posterior, so that posteriors can share it. The
    result is None where the training diverged.

    Examples:
        >>> reference = Score(end=0.4, best=0.4)
        >>> [compute_relative_score(Score(end, 0.3), reference) for end in (0.5, 0.3)]
        [0.5, 0.3]
    """
    if score.end is None or score.best is None or reference.end is None or reference.best is None:
        return score.best
    return score.best + max(0.0, score.end - reference.end - (score.best - reference.best))


def measure_losses(
    likelihood: Likelihood, predictions: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float | None, Tensor | None]:
    """Mean loss of all examples, and the loss of each one.

    Returns:
        The mean loss, None if it is not finite; and the losses, shape [n], float64 on the CPU, None if the likelihood
        gives no finite numbers for single examples. Their mean is the mean loss: an example counts as much as it has
        targets, such as labelled positions, and one without any is left out.
    """
    means, counts, losses, sizes = list[float](), list[int](), list[Tensor](), list[int]()
    failed = False
    for outputs, targets in predictions:  # to the end, whatever happens
        means.append(float(likelihood.loss(outputs, targets)))
        counts.append(likelihood.count_targets(targets))
        rows = [slice(k, k + 1) for k in range(len(targets))]
        are_equal = counts[-1] == len(rows)
        sizes += [1 if are_equal else likelihood.count_targets(targets[row]) for row in rows]
        try:
            losses += [likelihood.loss(outputs[row], targets[row]).reshape(()) for row in rows]
        except (RuntimeError, ValueError, IndexError, TypeError):  # a loss of several examples, such as a ranking
            failed = True
    mean = means[0] if len(means) == 1 else sum(map(operator.mul, means, counts)) / sum(counts)
    values = torch.stack(losses).detach().to("cpu", torch.float64) if losses else torch.zeros(0)
    if not failed:
        weights = torch.tensor(sizes, dtype=torch.float64)
        values = values[weights > 0] * weights[weights > 0] / weights[weights > 0].mean()
    is_usable = not failed and len(values) > 1 and bool(values.isfinite().all())
    return mean if math.isfinite(mean) else None, values if is_usable else None


def compute_standard_error(score: Score, reference: Score) -> float:
    """Standard error of the difference of two validation NLL, from the differences of single examples; 0 if unknown.

    Examples:
        >>> first, second = (Score(1.0, 1.0, torch.tensor(losses)) for losses in ([0.9, 1.1], [0.9, 1.0]))
        >>> round(compute_standard_error(first, second), 4)
        0.05
    """
    if score.losses is None or reference.losses is None or len(score.losses) != len(reference.losses):
        return 0.0
    return compute_difference_error(score.losses, reference.losses)


@dataclass(frozen=True)
class PriorChoice:
    """The strength of the prior that a pilot has chosen, and why.

    Attributes:
        factor: Factor on the precision of the prior.
        weight_decay: The resulting weight decay, or prior precision times temperature over the number of examples.
        scores: Validation NLL by factor; None where training diverged.
        reason: Why it was chosen, as a sentence.
    """

    factor: float
    weight_decay: float
    scores: tuple[tuple[float, float | None], ...]
    reason: str

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data, for the metadata of an artefact."""
        return {**vars(self), "scores": [list(pair) for pair in self.scores]}


def describe_prior(choice: PriorChoice, obstacle: str) -> str:
    """Why a strength of the prior was chosen, as a sentence; `obstacle` says why no stronger one was tried."""
    value = f"prior_factor is {choice.factor:g}, a weight decay of {choice.weight_decay:.2g}"
    scores = format_scores(choice.scores)
    if len(choice.scores) < 2:
        return f"{value}: {obstacle}."
    if choice.factor == 1:
        return f"{value}: no stronger prior has a validation NLL {MIN_GAIN:g} lower ({scores})."
    return f"{value}: the validation NLL is {MIN_GAIN:g} lower than with a weaker one ({scores})."
