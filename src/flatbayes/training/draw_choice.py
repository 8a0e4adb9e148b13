"""Choice of the draw options of a fitted posterior that are "auto", on validation examples and without training."""

import math
from dataclasses import replace
from typing import Any

from flatbayes.posteriors.draw_options import DrawOption, list_auto_options, replace_option
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training.data import TrainingData

NUM_DRAWS = 30
MAX_EXAMPLES = 2000
"""Largest number of validation examples of a choice: with more, its time would exceed a few percent of a training."""
CHOICE_KEY = "draw_options"


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
        By dotted name of the option: its `value`; with validation examples their number and the pairs of value and
        NLL that were compared, without any the `reason` why the value is the default.
    """
    posterior = fitted.posterior
    options = list_auto_options(posterior.draw_options, posterior, with_none=is_automatic)
    examples = training_data.sample_validation(MAX_EXAMPLES) if options and can_predict else None
    if examples is None:  # what nobody has set needs no explanation
        options = list_auto_options(posterior.draw_options, posterior)
    choices: dict[str, Any] = {}
    for name, option in options.items():
        if examples is None:
            reason = "no validation examples" if can_predict else "no predictive distribution"
            choices[name] = {"value": option.default, "reason": reason}
            continue
        choices[name] = _compare_values(apply_choices(fitted, choices), examples, name, option)
    return choices


def apply_choices(fitted: FittedPosterior, choices: dict[str, Any]) -> FittedPosterior:
    """A posterior with the same states and the chosen values.

    Args:
        fitted: The posterior, which is not changed.
        choices: The result of `choose_draw_options`.
    """
    posterior = fitted.posterior
    for name, choice in choices.items():
        posterior = replace_option(posterior, name, choice["value"])
    return replace(fitted, posterior=posterior, norm_statistics={})


def _compare_values(fitted: FittedPosterior, examples: Any, name: str, option: DrawOption) -> dict[str, Any]:
    losses: dict[float | None, float] = {}

    def measure(value: float | None) -> None:
        try:
            candidate = apply_choices(fitted, {name: {"value": value}})
            loss = evaluate(candidate, examples, num_draws=NUM_DRAWS).metrics["nll"]
        except RuntimeError:  # predictions far from the mean that are not finite
            loss = math.nan
        losses[value] = math.inf if math.isnan(loss) else loss

    for value in (option.default, *option.candidates):
        if value not in losses:
            measure(value)
    tried = sorted(value for value in losses if value is not None)
    best = min(losses, key=losses.__getitem__)
    if best is not None:
        position = tried.index(best)
        for neighbour in (tried[max(0, position - 1)], tried[min(len(tried) - 1, position + 1)]):
            if neighbour != best:
                measure(math.sqrt(best * neighbour))
    best = min(losses, key=losses.__getitem__)
    pairs = sorted(losses.items(), key=lambda pair: -1.0 if pair[0] is None else pair[0])
    return {"value": best, "val_nll": [[value, loss if math.isfinite(loss) else None] for value, loss in pairs]}
