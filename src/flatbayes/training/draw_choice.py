"""Choice of what only predictions depend on and is "auto", on validation examples and without training.

These are the draw options of the posterior, and the factor on the noise of a Gaussian likelihood, which a network
that overfits learns too small. The factor is chosen first, since the options are compared with it, and again last.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flatbayes.calibration.targets import MIN_EXAMPLES, warn_if_few
from flatbayes.core.names import format_count
from flatbayes.data import Split
from flatbayes.likelihoods import CategoricalPredictive, Custom, Gaussian, GaussianPredictive, Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.posteriors.draw_options import Criterion, DrawOption, Tolerance, list_auto_options, replace_option
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.labelled import select_examples
from flatbayes.training.data import TrainingData

NUM_DRAWS = 30
MAX_EXAMPLES = 2000
"""Largest number of validation examples of a choice: with more, its time would exceed a few percent of a training."""
CHOICE_KEY = "draw_options"
NOISE_FACTOR = "noise_factor"
NOISE_OPTION = DrawOption(1.0, (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 4.0, 8.0))
Measure = Callable[[float | None], float]
"""Validation NLL of a value of an option."""
NUM_TOLERANCE_DRAWS = 10
"""Draws of a comparison with the predictions at 0, the published number."""
NUM_HALVINGS, BRACKET_FACTOR, MAX_BRACKET_STEPS = 6, 4.0, 10


def choose_draw_options(
    fitted: FittedPosterior, training_data: TrainingData, *, can_predict: bool, is_automatic: bool
) -> dict[str, Any]:
    """The values of the options that are "auto", one after the other, and the reason for each, as plain data.

    Args:
        fitted: The posterior.
        training_data: Has the validation examples.
        can_predict: Whether the likelihood has a predictive distribution.
        is_automatic: Whether the number of epochs is automatic; options that are None are then chosen too.

    Returns:
        By dotted name of the option: its `value`; with validation examples the pairs of value and NLL that were
        compared and the `margin`, or the pairs of value and change; without any the `reason` why the value is the
        default.
    """
    options = list_options(fitted, with_none=is_automatic)
    examples = training_data.sample_validation(MAX_EXAMPLES) if options and can_predict else None
    if examples is None:  # options that are not set have their defaults, without a record
        options = list_options(fitted, with_none=False)
    reason = "no validation examples" if can_predict else "no predictive distribution"
    return _choose_on_examples(fitted, options, examples, reason)


def explain_validation(training_data: TrainingData, *, stops_early: bool, is_automatic: bool) -> str | None:
    """A message where the validation examples of a training are few, or held out of its training examples.

    Args:
        training_data: Has the validation examples; those of a loader are not counted.
        stops_early: Whether they decide when training stops.
        is_automatic: Whether options that are None are chosen on them.
    """
    if training_data.num_held_out:
        counted = format_count(training_data.num_held_out, "example is", "examples are")
        decided, given = ("when training stops and how wide the posterior is", "a number of epochs")
        if not is_automatic:
            decided, given = "on the radius", "the radius"
        return f"{counted} held out for validation, which decides {decided}. Give val, or {given} to train on all."
    examples = training_data.sample_validation(MAX_EXAMPLES)
    if not isinstance(examples, Split) or len(examples) >= MIN_EXAMPLES or not (stops_early or is_automatic):
        return None
    return (
        f"{format_count(len(examples), 'validation example decides', 'validation examples decide')} when training "
        f"stops and how wide the posterior is, and with fewer than {MIN_EXAMPLES} chance decides. Give more (val, or "
        "val_size of the data), or a number of epochs, which uses none."
    )


def check_criteria(posterior: Posterior, likelihood: Likelihood) -> None:
    """Refuse, before the training, a choice after it that the likelihood does not allow.

    Raises:
        ValueError: A criterion is about classes, and the predictions are numbers.
    """
    while isinstance(likelihood, Custom):
        likelihood = likelihood.output_likelihood
    for name, option in list_auto_options(posterior.draw_options, posterior).items():
        tolerance = option.tolerance
        if tolerance is not None and tolerance.criterion != "nll" and isinstance(likelihood, Gaussian):
            raise ValueError(
                f"criterion={tolerance.criterion!r} of {name}='auto' is about classes, and predictions are numbers. "
                "Use criterion='nll'."
            )


def tune_draws(fitted: FittedPosterior, data: Any, targets: Any = None) -> FittedPosterior:
    """Choose the draw options that are "auto" on validation examples, with forward passes only.

    `fit` does this with its validation examples. Use this function for a posterior that was trained in another loop,
    or around weights that were trained before.

    Args:
        fitted: The posterior, which is not changed; the result shares its networks.
        data: Labelled examples that were not used for training, as for `evaluate`.
        targets: Targets of these inputs, if `data` are inputs alone.

    Raises:
        ValueError: No draw option of the posterior is "auto", or its criterion is about classes, and predictions
            are numbers.

    Warns:
        CalibrationWarning: There are fewer than 10 examples.

    Examples:
        >>> state = TFB().init(fitted.states[0].model, None, num_data=100)
        >>> noisy = FittedPosterior(TFB(), [state], fitted.likelihood, fitted.transform)
        >>> tune_draws(noisy, data.val).posterior.std > 0
        True
    """
    options = list_auto_options(fitted.posterior.draw_options, fitted.posterior)
    if not options:
        raise ValueError(
            f"No draw option of {type(fitted.posterior).__name__} is 'auto', so there is nothing to choose. Set one, "
            f"such as {next(iter(fitted.posterior.draw_options), 'scale')}='auto'."
        )
    check_criteria(fitted.posterior, fitted.likelihood)
    _, labels = select_examples(fitted, data, targets)
    if labels is not None:  # those of batches are known once they have been read
        purpose = f"the choice of {', '.join(options)}"
        warn_if_few(len(labels), MIN_EXAMPLES, purpose, "Chance decides more than they do")
    choices = _choose_on_examples(fitted, options, data if targets is None else (data, targets), "")
    training = {**fitted.info.get("training", {}), CHOICE_KEY: choices}
    return replace(apply_choices(fitted, choices), info={**fitted.info, "training": training})


def apply_choices(fitted: FittedPosterior, choices: dict[str, Any]) -> FittedPosterior:
    """A posterior with the same states and the chosen values.

    Args:
        fitted: The posterior, which is not changed.
        choices: The result of `choose_draw_options`.
    """
    posterior, likelihood = fitted.posterior, fitted.likelihood
    for name, choice in choices.items():
        if name == NOISE_FACTOR:
            likelihood = replace_option(likelihood, name, choice["value"])
        else:
            posterior = replace_option(posterior, name, choice["value"])
    return replace(fitted, posterior=posterior, likelihood=likelihood, norm_statistics={})


def list_options(fitted: FittedPosterior, *, with_none: bool) -> dict[str, DrawOption]:
    """Options that are "auto" by dotted name, that of the likelihood first.

    Args:
        fitted: The posterior.
        with_none: Whether those that are not set (None) are listed too.
    """
    noise = {NOISE_FACTOR: NOISE_OPTION} if isinstance(fitted.likelihood, Gaussian) else {}
    return {
        **list_auto_options(noise, fitted.likelihood, with_none=with_none),
        **list_auto_options(fitted.posterior.draw_options, fitted.posterior, with_none=with_none),
    }


def find_largest(is_accepted: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value found to be accepted, by a search for a bracket and bisection of its logarithm; else 0.

    Args:
        is_accepted: Whether a value is accepted.
        low: First value; if it is refused, smaller ones follow.
        high: Tried after an accepted `low`; if it is accepted, larger ones follow.
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


def select_value(losses: Mapping[float | None, float], margin: float) -> float | None:
    """The largest value whose NLL is at most `margin` above the lowest one; None if that is the best.

    Args:
        losses: Validation NLL by value.
        margin: Nats.

    Examples:
        >>> select_value({0.1: 0.300, 1.0: 0.301, 10.0: 0.350}, 0.003), select_value({0.1: 0.300, 1.0: 0.301}, 0.0)
        (1.0, 0.1)
    """
    best = min(losses, key=losses.__getitem__)
    if best is None or losses[best] == math.inf:
        return best
    return max(value for value, loss in losses.items() if value is not None and loss <= losses[best] + margin)


def _choose_on_examples(
    fitted: FittedPosterior, options: dict[str, DrawOption], examples: Any, reason: str
) -> dict[str, Any]:
    choices: dict[str, Any] = {}
    names = [*options, NOISE_FACTOR] if NOISE_FACTOR in options and examples is not None else [*options]
    for name in names:
        option = options[name]
        current = apply_choices(fitted, choices)
        if examples is None:
            choices[name] = {"value": option.default, "reason": reason}
        elif option.tolerance is None:
            make_measure = _measure_noise if name == NOISE_FACTOR else _measure_draws
            choices[name] = _compare_values(option, make_measure(current, examples, name))
        else:
            choices[name] = _find_largest_tolerated(current, examples, name, option, option.tolerance)
    return choices


def _measure_draws(fitted: FittedPosterior, examples: Any, name: str) -> Measure:
    def measure(value: float | None) -> float:
        try:
            candidate = apply_choices(fitted, {name: {"value": value}})
            return float(evaluate(candidate, examples, num_draws=NUM_DRAWS).metrics["nll"])
        except RuntimeError:  # predictions far from the mean that are not finite
            return math.nan

    return measure


def _measure_noise(fitted: FittedPosterior, examples: Any, name: str) -> Measure:
    """The NLL by the factor, of one prediction."""
    candidate = apply_choices(fitted, {name: {"value": 1.0}})
    try:
        predictive, targets, _ = predict_labelled(candidate, examples, None, NUM_DRAWS, batch_size=256)
    except RuntimeError:
        return lambda _: math.nan
    if not isinstance(predictive, GaussianPredictive):
        return lambda _: math.nan

    def measure(value: float | None) -> float:
        scaled = replace(predictive, member_stds=predictive.member_stds * (value or 1.0))
        return float(-scaled.log_prob(targets).mean())

    return measure


def _compare_values(option: DrawOption, measure: Measure) -> dict[str, Any]:
    losses: dict[float | None, float] = {}

    def add(value: float | None) -> None:
        loss = measure(value)
        losses[value] = math.inf if math.isnan(loss) else loss

    for value in (option.default, *option.candidates):
        if value not in losses:
            add(value)
    tried = sorted(value for value in losses if value is not None)
    best = select_value(losses, option.margin)
    if best is not None:
        position = tried.index(best)
        for neighbour in (tried[max(0, position - 1)], tried[min(len(tried) - 1, position + 1)]):
            if neighbour != best:
                add(math.sqrt(best * neighbour))
    best = select_value(losses, option.margin)
    pairs = sorted(losses.items(), key=lambda pair: -1.0 if pair[0] is None else pair[0])
    record = {"value": best, "val_nll": [[value, loss if math.isfinite(loss) else None] for value, loss in pairs]}
    return record | ({"margin": option.margin} if option.margin else {})


def _find_largest_tolerated(
    fitted: FittedPosterior, examples: Any, name: str, option: DrawOption, tolerance: Tolerance
) -> dict[str, Any]:
    measure = _make_criterion(fitted, examples, name, tolerance.criterion)
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


def _make_criterion(
    fitted: FittedPosterior, examples: Any, name: str, criterion: Criterion
) -> Callable[[float], float]:
    """A function that measures the change of the predictions at a value from those at 0."""

    def replace_value(value: float) -> FittedPosterior:
        return apply_choices(fitted, {name: {"value": value}})

    if criterion == "nll":

        def measure_nll(value: float) -> float:
            return float(evaluate(replace_value(value), examples, num_draws=NUM_TOLERANCE_DRAWS).metrics["nll"])

        return _make_relative(measure_nll)

    def predict(value: float) -> CategoricalPredictive:
        candidate = replace_value(value)
        predictive = predict_labelled(candidate, examples, None, NUM_TOLERANCE_DRAWS, batch_size=256)[0]
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
