"""Searches for the value of a draw option: that of the lowest validation NLL, or the largest that changes little."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatbayes.calibration.map_fitting import compute_difference_error, compute_example_losses
from flatbayes.likelihoods import CategoricalPredictive, DenseCategoricalPredictive, Predictive
from flatbayes.posteriors.draw_options import Criterion, DrawOption, Tolerance
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.position_stream import stream_example_losses
from flatbayes.training.batches import preserve_loader

NUM_TOLERANCE_DRAWS = 10
"""Draws of a comparison with the predictions at 0, the published number."""
NUM_HALVINGS, BRACKET_FACTOR, MAX_BRACKET_STEPS = 6, 4.0, 10
Measure = Callable[[float | None], float]
"""Validation NLL of a value of an option."""
ReplaceValue = Callable[[float], FittedPosterior]
"""The posterior with a value of the option."""


def evaluate_nll(fitted: FittedPosterior, examples: Any, num_draws: int) -> float:
    """NLL of examples. A loader gives the same ones each time, and no random state changes."""
    with preserve_loader(examples):
        return float(evaluate(fitted, examples, num_draws=num_draws).metrics["nll"])


def predict_examples(fitted: FittedPosterior, examples: Any, num_draws: int) -> tuple[Predictive, Tensor]:
    """Predictions of examples, and the targets; likewise."""
    with preserve_loader(examples):
        return predict_labelled(fitted, examples, None, num_draws, batch_size=256)[:2]


def measure_example_losses(fitted: FittedPosterior, examples: Any, num_draws: int) -> Tensor:
    """Losses of single examples, as of `compute_example_losses`; likewise."""
    if fitted.likelihood.has_positions:
        with preserve_loader(examples):
            return stream_example_losses(fitted, examples, num_draws, batch_size=256)
    return compute_example_losses(*predict_examples(fitted, examples, num_draws))


class ExampleLosses:
    """Validation NLL of values of an option, and how certain the difference of two is.

    Attributes:
        losses: Losses of single examples by value; a single NaN where predictions are not finite.
    """

    def __init__(self, compute: Callable[[float | None], Tensor]) -> None:
        """Set what computes the losses of the validation examples with a value."""
        self.losses: dict[float | None, Tensor] = {}
        self._compute = compute

    def __call__(self, value: float | None) -> float:
        """Mean of the losses at a value, which are computed once."""
        if value not in self.losses:
            try:
                self.losses[value] = self._compute(value)
            except RuntimeError:  # predictions far from the mean that are not finite
                self.losses[value] = torch.full((1,), math.nan)
        return float(self.losses[value].mean())

    def compute_error(self, value: float | None, reference: float | None) -> float:
        """Standard error of the difference of the means at two values, from the differences of single examples."""
        return compute_difference_error(self.losses[value], self.losses[reference])


def compare_values(option: DrawOption, measure: Measure, *, with_all: bool = True) -> dict[str, Any]:
    """The value with the lowest validation NLL, or a larger one within the margin, as plain data with the NLLs.

    Args:
        option: Candidates and margin.
        measure: Validation NLL of a value; `ExampleLosses` if the default is kept unless another is surely better.
        with_all: Try all candidates; otherwise from the default on in both directions, as long as they are better.
    """
    losses: dict[float | None, float] = {}

    def add(value: float | None) -> None:
        loss = measure(value)
        losses[value] = math.inf if math.isnan(loss) else loss

    if with_all:
        for value in dict.fromkeys((option.default, *option.candidates)):
            add(value)
    else:
        _descend(option, add, losses)
    tried = sorted(value for value in losses if value is not None)
    best = select_value(losses, option.margin)
    if best is not None and option.has_means:
        position = tried.index(best)
        for neighbour in (tried[max(0, position - 1)], tried[min(len(tried) - 1, position + 1)]):
            if neighbour != best:
                add(math.sqrt(best * neighbour))
    best = select_value(losses, option.margin)
    errors = dict[float | None, float]()
    if option.keeps_default and isinstance(measure, ExampleLosses):
        errors = {value: measure.compute_error(value, option.default) for value in losses if value != option.default}
        limit = losses[option.default]
        certain = {value: losses[value] for value, error in errors.items() if not losses[value] + error >= limit}
        best = select_value({option.default: limit, **certain}, option.margin)
    pairs = sorted(losses.items(), key=lambda pair: -1.0 if pair[0] is None else pair[0])
    record = {"value": best, "val_nll": [[value, loss if math.isfinite(loss) else None] for value, loss in pairs]}
    if errors:
        finite = {value: error for value, error in errors.items() if math.isfinite(error)}
        record["standard_errors"] = [[value, finite[value]] for value, _ in pairs if value in finite]
    return record | ({"margin": option.margin} if option.margin else {})


def _descend(option: DrawOption, add: Callable[[float | None], None], losses: Mapping[float | None, float]) -> None:
    """Try values from the default on, or the middle if that is None, down and then up, each until one is worse."""
    values = sorted({*option.candidates, *(() if option.default is None else (option.default,))})
    start = (len(values) - 1) // 2 if option.default is None else values.index(option.default)
    for value in dict.fromkeys((option.default, values[start])):
        add(value)
    for direction in (values[:start][::-1], values[start + 1 :]):
        for value in direction:
            lowest = min(losses.values())
            add(value)
            if losses[value] > lowest:
                break


def select_value(losses: Mapping[float | None, float], margin: float) -> float | None:
    """The largest value whose NLL is at most `margin` nats above the lowest one; None if that is the best.

    Without a margin it is the first one with the lowest NLL; the default comes first, and others may be the same.

    Examples:
        >>> select_value({0.1: 0.300, 1.0: 0.301, 10.0: 0.350}, 0.003), select_value({0.1: 0.300, 1.0: 0.301}, 0.0)
        (1.0, 0.1)
    """
    best = min(losses, key=losses.__getitem__)
    if best is None or losses[best] == math.inf or not margin:
        return best
    return max(value for value, loss in losses.items() if value is not None and loss <= losses[best] + margin)


def find_largest_tolerated(
    replace_value: ReplaceValue, examples: Any, option: DrawOption, tolerance: Tolerance
) -> dict[str, Any]:
    """The largest value that changes predictions by as much as is tolerated, as plain data with the changes.

    The search begins between the first and the last candidate.
    """
    measure = _make_criterion(replace_value, examples, tolerance.criterion)
    changes: dict[float, float] = {}

    def is_accepted(value: float) -> bool:
        try:
            changes[value] = measure(value)
        except RuntimeError:  # predictions far from the mean that are not finite
            changes[value] = math.inf
        return changes[value] <= tolerance.max_change

    value = find_largest(is_accepted, option.candidates[0], option.candidates[-1])
    return {
        "value": value,
        "criterion": tolerance.criterion,
        "max_change": tolerance.max_change,
        "changes": [[v, change if math.isfinite(change) else None] for v, change in sorted(changes.items())],
    }


def find_largest(is_accepted: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value found to be accepted, by a search for a bracket and bisection of its logarithm; else 0.

    If `low` is refused, smaller values follow; after an accepted `low` comes `high`, and larger values if it is
    accepted.
    """
    accepted, refused, value = 0.0, math.inf, low
    num_steps, num_halvings = MAX_BRACKET_STEPS, NUM_HALVINGS
    while num_steps >= 0 and num_halvings >= 0:
        if is_accepted(value):
            accepted = value
        else:
            refused = value
        if accepted == 0:
            num_steps, value = num_steps - 1, refused / BRACKET_FACTOR
        elif refused == math.inf:
            num_steps, value = num_steps - 1, high if accepted < high else accepted * BRACKET_FACTOR
        else:
            num_halvings, value = num_halvings - 1, math.sqrt(accepted * refused)
    return accepted


def _make_criterion(replace_value: ReplaceValue, examples: Any, criterion: Criterion) -> Callable[[float], float]:
    """A function that measures the change of the predictions at a value from those at 0."""
    if criterion == "nll":

        def measure_nll(value: float) -> float:
            return evaluate_nll(replace_value(value), examples, NUM_TOLERANCE_DRAWS)

        return _make_relative(measure_nll)

    def predict(value: float) -> CategoricalPredictive:
        predictive, targets = predict_examples(replace_value(value), examples, NUM_TOLERANCE_DRAWS)
        if isinstance(predictive, DenseCategoricalPredictive):
            predictive = predictive.select_labelled(targets)[0]
        if not isinstance(predictive, CategoricalPredictive):
            raise TypeError(f"criterion={criterion!r} is about classes, got a {type(predictive).__name__}.")
        return predictive

    classes = predict(0.0).top_class
    if criterion == "changed_classes":
        return lambda value: float((predict(value).top_class != classes).double().mean())

    def measure_loss(value: float) -> float:
        return -float(predict(value).log_probs.gather(-1, classes[..., None]).mean())

    measure_increase = _make_relative(measure_loss)
    return lambda value: abs(measure_increase(value))  # noise can make a prediction more certain, too


def _make_relative(measure_loss: Callable[[float], float]) -> Callable[[float], float]:
    """A function that gives the increase of a loss from its value at 0, relative to the size of that."""
    initial = measure_loss(0.0)

    def measure_increase(value: float) -> float:
        increase = measure_loss(value) - initial
        return increase / abs(initial) if initial else math.copysign(math.inf, increase) if increase else 0.0

    return measure_increase
