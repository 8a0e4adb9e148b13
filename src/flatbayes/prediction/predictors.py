"""Functions that predict several sets of examples in the same way, for evaluations of more than one set."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flatbayes.likelihoods import CategoricalPredictive, DenseCategoricalPredictive, NumberPredictive, Predictive
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.inputs import make_input_tensor
from flatbayes.prediction.labelled import mark_unlabelled
from flatbayes.prediction.placement import PredictionPrecision


def make_predictor(
    fitted: FittedPosterior,
    num_draws: int,
    batch_size: int,
    seed: int,
    show_progress: bool,
    precision: PredictionPrecision | None,
    compiled: bool,
) -> Callable[[Any], Predictive]:
    """Function that predicts the classes or labels of inputs.

    Returns:
        It raises a ValueError if the inputs have another shape than in training, or predictions are of numbers.
    """
    input_shape = fitted.info.get("input_shape")

    def predict(inputs: Any) -> Predictive:
        if fitted.input_structure is None:
            inputs = make_input_tensor(inputs, fitted.info, fitted.transform)
        if input_shape is not None and tuple(input_shape) != tuple(inputs.shape[1:]):
            raise ValueError(
                f"The posterior takes inputs of the shape {tuple(input_shape)}, got {tuple(inputs.shape[1:])}. Give "
                "inputs like those of the training; flatbayes.data.match_input_format brings images into their shape."
            )
        predictive = fitted.predict(
            inputs,
            num_draws,
            batch_size=batch_size,
            seed=seed,
            show_progress=show_progress,
            precision=precision,
            compiled=compiled,
        )
        if isinstance(predictive, NumberPredictive):
            raise ValueError(
                f"This evaluation is for classification, and the posterior predicts a {type(predictive).__name__}."
            )
        return predictive

    return predict


def flatten_positions(fitted: FittedPosterior, predictive: Predictive, targets: Tensor) -> tuple[Predictive, Tensor]:
    """Predictions and labels of the labelled positions, where each position has a class; others as they are."""
    if not isinstance(predictive, DenseCategoricalPredictive):
        return predictive, targets
    likelihood = unwrap_custom(fitted.likelihood)
    return predictive.select_labelled(mark_unlabelled(likelihood, likelihood.prepare_targets(targets.cpu())))


def require_classes(predictive: Predictive, advice: str) -> CategoricalPredictive:
    """Predictions, if they are of one class of each example.

    Raises:
        ValueError: They are others.
    """
    if not isinstance(predictive, CategoricalPredictive):
        raise ValueError(
            f"This evaluation is for one class of each example, got a {type(predictive).__name__}. {advice}"
        )
    return predictive
