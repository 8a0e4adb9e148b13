"""Choice of what only predictions depend on and is "auto", on validation examples and without training.

These are the draw options of the posterior, and the factor on the noise of a Gaussian likelihood, which a network
that overfits learns too small. The factor is chosen first, since the options are compared with it, and again last.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from flatbayes.calibration.targets import MIN_EXAMPLES, count_rare, warn_if_few
from flatbayes.core.input_trees import count_examples
from flatbayes.core.names import format_count
from flatbayes.likelihoods import Bernoulli, DistributionLikelihood, Gaussian, GaussianPredictive, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.posteriors import Posterior
from flatbayes.posteriors.draw_options import DrawOption, list_auto_options, replace_option
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.labelled import select_examples
from flatbayes.training.data import InMemoryData, TrainingData
from flatbayes.training.draw_search import (
    ExampleLosses,
    Measure,
    compare_values,
    find_largest_tolerated,
    measure_example_losses,
    predict_examples,
)
from flatbayes.training.network_defaults import LARGE_NETWORK

NUM_DRAWS, MAX_EXAMPLES = 30, 2000
"""Networks and validation examples that a value is tried with, unless that takes long beside the training."""
MIN_DRAWS, MIN_CHOICE_EXAMPLES = 5, 200
MAX_SHARE, NUM_VALUES, NUM_OTHER_VALUES = 0.5, 6, 2
"""From `LARGE_NETWORK` parameters on, the choice takes about `MAX_SHARE` of the time of the training, or that of
`MIN_DRAWS` draws. It tries about `NUM_VALUES` values of one option and `NUM_OTHER_VALUES` of each further one, and a
gradient takes as long as three predictions."""
CHOICE_KEY = "draw_options"
NOISE_FACTOR = "noise_factor"
NOISE_OPTION = DrawOption(1.0, (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 4.0, 8.0))


def choose_draw_options(
    fitted: FittedPosterior, training_data: TrainingData, *, can_predict: bool, is_automatic: bool
) -> dict[str, Any]:
    """The values of the options that are "auto", one after the other, and the reason for each, as plain data.

    With `is_automatic`, options that are None are chosen too.

    Returns:
        By dotted name of the option: its `value`; with validation examples the pairs of value and NLL that were
        compared and the `margin`, or the `standard_errors` of the differences from the default; or the pairs of value
        and change; without any the `reason` why the value is the default.
    """
    options, examples, plan = list_options(fitted, with_none=is_automatic), None, ChoicePlan()
    if options and can_predict and training_data.has_validation:
        plan = plan_choice(fitted, training_data.num_validation, len(options))
        examples = training_data.sample_validation(plan.max_examples)
    if examples is None:  # options that are not set have their defaults, without a record
        options = list_options(fitted, with_none=False)
    reason = "no validation examples" if can_predict else "no predictive distribution"
    return _choose_on_examples(fitted, options, examples, reason, plan)


class ChoicePlan(NamedTuple):
    """What each value is tried with, and which values are."""

    num_draws: int = NUM_DRAWS
    max_examples: int = MAX_EXAMPLES
    with_all: bool = True


def plan_choice(fitted: FittedPosterior, num_examples: int, num_options: int = 1) -> ChoicePlan:
    """The plan of a choice: a cheaper one for a large network, above all if its training was short."""
    state, training = fitted.states[0], fitted.info.get("training", {})
    if sum(param.numel() for param in state.model.parameters()) < LARGE_NETWORK:
        return ChoicePlan()
    epochs = max(training.get("last_epochs") or [training.get("epochs", 0)])
    num_values = NUM_VALUES + NUM_OTHER_VALUES * (num_options - 1)
    num_predictions = int(3 * MAX_SHARE / num_values * epochs * state.num_data)
    num_examples = max(1, min(num_examples, MAX_EXAMPLES, max(MIN_CHOICE_EXAMPLES, num_predictions // MIN_DRAWS)))
    num_passes = num_examples + sum(map(count_examples, fitted.statistics_inputs))
    return ChoicePlan(min(NUM_DRAWS, max(MIN_DRAWS, num_predictions // num_passes)), num_examples, with_all=False)


def explain_validation(training_data: TrainingData, *, stops_early: bool, is_automatic: bool) -> str | None:
    """A message where the validation examples of a training are few, or held out of its training examples.

    Validation examples of a loader are not counted.
    """
    if training_data.num_held_out:
        counted = format_count(training_data.num_held_out, "example is", "examples are")
        decided, given = ("when training stops and how wide the posterior is", "a number of epochs")
        if not is_automatic:
            decided, given = "on the radius", "the radius"
        message = f"{counted} held out for validation, which decides {decided}. Give val, or {given} to train on all."
        return message + explain_rare(training_data)
    if not isinstance(training_data, InMemoryData) or not (stops_early or is_automatic):
        return None
    num_examples = training_data.num_validation
    if not 0 < num_examples < MIN_EXAMPLES:
        return explain_rare(training_data).strip() or None
    return (
        f"{format_count(num_examples, 'validation example decides', 'validation examples decide')} when training "
        f"stops and how wide the posterior is, and with fewer than {MIN_EXAMPLES} chance decides. Give more (val, or "
        "val_size of the data), or a number of epochs, which uses none."
    )


def explain_rare(training_data: TrainingData) -> str:
    """A sentence, after a space, where validation examples of rare classes are too few to decide; else nothing."""
    splits = training_data.splits if isinstance(training_data, InMemoryData) else None
    if splits is None or not splits.class_names or splits.is_dense:
        return ""
    num_other = count_rare(splits.val.targets)
    if num_other is None:
        return ""
    return (
        f" {num_other} of the {format_count(len(splits.val), 'validation example')} "
        f"{'is' if num_other == 1 else 'are'} not of the most frequent class, and these decide about the rare ones: "
        f"give at least {MIN_EXAMPLES} of them."
    )


def check_criteria(posterior: Posterior, likelihood: Likelihood) -> None:
    """Refuse, before the training, a choice after it that the likelihood does not allow.

    Raises:
        ValueError: A criterion is about classes, and the predictions are numbers or several labels.
    """
    likelihood, kinds = unwrap_custom(likelihood), (Bernoulli, DistributionLikelihood, Gaussian)
    for name, option in list_auto_options(posterior.draw_options, posterior).items():
        tolerance = option.tolerance
        if tolerance is not None and tolerance.criterion != "nll" and isinstance(likelihood, kinds):
            predicted = "several labels" if isinstance(likelihood, Bernoulli) else "numbers"
            raise ValueError(
                f"criterion={tolerance.criterion!r} of {name}='auto' is about classes, and predictions are "
                f"{predicted}. Use criterion='nll'."
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
            are numbers or several labels.

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
    """A posterior with the same states and the values from `choose_draw_options`."""
    posterior, likelihood = fitted.posterior, fitted.likelihood
    for name, choice in choices.items():
        if name == NOISE_FACTOR:
            likelihood = replace_option(likelihood, name, choice["value"])
        else:
            posterior = replace_option(posterior, name, choice["value"])
    return replace(fitted, posterior=posterior, likelihood=likelihood, norm_statistics={})


def list_options(fitted: FittedPosterior, *, with_none: bool) -> dict[str, DrawOption]:
    """Options that are "auto", or with `with_none` also None, by dotted name, that of the likelihood first."""
    noise = {NOISE_FACTOR: NOISE_OPTION} if isinstance(fitted.likelihood, Gaussian) else {}
    return {
        **list_auto_options(noise, fitted.likelihood, with_none=with_none),
        **list_auto_options(fitted.posterior.draw_options, fitted.posterior, with_none=with_none),
    }


def _choose_on_examples(
    fitted: FittedPosterior,
    options: dict[str, DrawOption],
    examples: Any,
    reason: str,
    plan: ChoicePlan = ChoicePlan(),
) -> dict[str, Any]:
    choices: dict[str, Any] = {}
    names = [*options, NOISE_FACTOR] if NOISE_FACTOR in options and examples is not None else [*options]
    losses: Tensor | None = None  # of the examples with the choices so far, if they are known
    for name in names:
        option = options[name]
        current = apply_choices(fitted, choices)
        if examples is None:
            choices[name] = {"value": option.default, "reason": reason}
        elif option.tolerance is None:
            measure: Measure
            if name == NOISE_FACTOR:
                measure = _measure_noise(current, examples, name, plan.num_draws)
            else:
                measure = _measure_draws(current, examples, name, plan.num_draws)
                if losses is not None:
                    measure.losses[option.default] = losses
            choices[name] = compare_values(option, measure, with_all=plan.with_all)
            losses = measure.losses[choices[name]["value"]] if isinstance(measure, ExampleLosses) else None
        else:
            replace_value = partial(_replace_value, current, name)
            choices[name] = find_largest_tolerated(replace_value, examples, option, option.tolerance)
            losses = None
    return choices


def _replace_value(fitted: FittedPosterior, name: str, value: float | None) -> FittedPosterior:
    return apply_choices(fitted, {name: {"value": value}})


def _measure_draws(fitted: FittedPosterior, examples: Any, name: str, num_draws: int) -> ExampleLosses:
    return ExampleLosses(
        lambda value: measure_example_losses(_replace_value(fitted, name, value), examples, num_draws)
    )


def _measure_noise(fitted: FittedPosterior, examples: Any, name: str, num_draws: int) -> Measure:
    """The NLL by the factor, of one prediction."""
    try:
        predictive, targets = predict_examples(_replace_value(fitted, name, 1.0), examples, num_draws)
    except RuntimeError:
        return lambda _: math.nan
    if not isinstance(predictive, GaussianPredictive):
        return lambda _: math.nan

    def measure(value: float | None) -> float:
        scaled = replace(predictive, member_stds=predictive.member_stds * (value or 1.0))
        return float(-scaled.log_prob(targets).mean())

    return measure
