"""Calibration of a fitted posterior on validation examples, and what temperature scaling would change.

`calibrate` returns a posterior that has the calibration from then on. `evaluate_recalibration` fits a temperature to
validation examples and evaluates it on test examples (Ashukha et al., ICLR 2020).
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor

from flatbayes.calibration.map_fitting import fit_calibration
from flatbayes.calibration.maps import CalibrationMethod
from flatbayes.calibration.targets import MIN_EXAMPLES, warn_if_few
from flatbayes.core.display import format_fields
from flatbayes.likelihoods import BernoulliPredictive
from flatbayes.metrics import apply_temperature, aurc, fit_temperature, multi_label_metrics
from flatbayes.metrics.calibration import classwise_ece_of_log_probs, equal_mass_error
from flatbayes.metrics.classification import score_examples
from flatbayes.metrics.temperature import PRIOR_EXAMPLES
from flatbayes.prediction.calibrated import replace_calibration
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.labelled import make_labelled_tensors
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.prediction.position_stream import sample_positions
from flatbayes.prediction.predictors import flatten_positions, make_predictor, require_classes


@dataclass(frozen=True)
class RecalibrationResult:
    """Metrics before and after temperature scaling.

    Attributes:
        temperature: The temperature that minimises the NLL of the validation examples, with the prior of
            `fit_temperature`.
        raw: Metrics of the test examples at temperature 1, as of `multi_label_metrics` for several labels.
        tempered: Metrics of the test examples at the fitted temperature.

    Examples:
        >>> result = evaluate_recalibration(fitted, data.val, data.test, num_draws=2)
        >>> result.tempered["accuracy"] == result.raw["accuracy"]
        True
    """

    temperature: float
    raw: dict[str, float]
    tempered: dict[str, float]

    __repr__ = format_fields

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries by field name, ready for JSON."""
        return asdict(self)


def calibrate(
    fitted: FittedPosterior,
    data: Any,
    targets: Any = None,
    num_draws: int = 30,
    *,
    method: CalibrationMethod | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> FittedPosterior:
    """A posterior with the same networks, whose predictions are calibrated on validation examples.

    Every prediction, the compiled and exported posterior, and the saved artefact have the calibration. `evaluate`
    gives the metrics without it too (`Evaluation.raw_metrics`), and `replace_calibration(fitted, None)` removes it.
    The argument is not changed, and both share their networks. An earlier calibration is replaced. For a class at
    each position the map is fitted to all labelled positions, or to random ones if all have more than 2^25
    probabilities.

    Args:
        fitted: The posterior.
        data: Labelled validation examples in a form that `flatbayes.evaluate` takes, not used for training.
        targets: As for `flatbayes.evaluate`.
        num_draws: Networks to average.
        method: For classes `temperature` (None), `vector`, `dirichlet` or `isotonic`; for several labels
            `temperature` (None) or `vector`; for numbers `scale` (None) or `quantile`.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.

    Raises:
        ValueError: The targets do not match the predictions, or the method is not for this kind of prediction.
        TypeError: There are no targets, or no calibration for this kind of prediction.

    Warns:
        CalibrationWarning: There are fewer than 10 examples, or for `isotonic` than 100; a class has none, but for
            `temperature`; or the temperature or factor is at an end of its range.

    Examples:
        >>> calibrated = calibrate(fitted, data.val, num_draws=5)
        >>> evaluation = evaluate(calibrated, data.test, num_draws=5)
        >>> evaluation.metrics["accuracy"] == evaluation.raw_metrics["accuracy"]
        True
        >>> evaluation.metrics["nll"] != evaluation.raw_metrics["nll"]
        True
    """
    raw = replace_calibration(fitted, None)
    if raw.likelihood.has_positions:
        sampled = sample_positions(raw, data, targets, num_draws, batch_size=batch_size, seed=seed)
        return replace_calibration(raw, fit_calibration(*sampled[:2], method, num_examples=sampled[2]))
    predictive, targets, _ = predict_labelled(raw, data, targets, num_draws, batch_size=batch_size, seed=seed)
    return replace_calibration(raw, fit_calibration(predictive, targets, method))


def evaluate_recalibration(
    fitted: FittedPosterior,
    val: Any,
    test: Any,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
    precision: PredictionPrecision | None = None,
    compiled: bool = False,
) -> RecalibrationResult:
    """Fit a temperature to validation examples, and compute test metrics without and with it.

    Args:
        fitted: The posterior.
        val: Raw validation examples, not used in training: a split, or a pair `(inputs, targets)`.
        test: Raw test examples, likewise.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.
        show_progress: Show progress bars on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Raises:
        ValueError: The inputs do not fit the posterior, or a validation label has probability 0.

    Warns:
        CalibrationWarning: There are fewer than 10 validation examples.

    Examples:
        >>> evaluate_recalibration(fitted, data.val, data.test, num_draws=2).temperature > 0
        True
    """
    (val_inputs, val_labels), (test_inputs, labels) = (make_labelled_tensors(fitted, data) for data in (val, test))
    predict = make_predictor(fitted, num_draws, batch_size, seed, show_progress, precision, compiled)
    num_examples = len(val_labels)
    validation, val_labels = flatten_positions(fitted, predict(val_inputs), val_labels)
    test_examples, labels = flatten_positions(fitted, predict(test_inputs), labels)
    if isinstance(test_examples, BernoulliPredictive):
        calibration = fit_calibration(validation, val_labels, "temperature")
        tempered = cast("BernoulliPredictive", calibration.apply(test_examples))
        metrics = [multi_label_metrics(each.log_probs, labels) for each in (test_examples, tempered)]
        return RecalibrationResult(1 / calibration.weights[0], *metrics)
    warn_if_few(num_examples, MIN_EXAMPLES, "a temperature", "It may be worse than none")
    val_log_probs, test_log_probs = (
        require_classes(predictive, "There is no temperature for it.").log_probs.cpu()
        for predictive in (validation, test_examples)
    )
    prior_examples = PRIOR_EXAMPLES * len(val_labels) / num_examples
    temperature, labels = fit_temperature(val_log_probs, val_labels.cpu(), prior_examples), labels.cpu()
    return RecalibrationResult(
        temperature,
        raw=_calibration_metrics(test_log_probs, labels),
        tempered=_calibration_metrics(apply_temperature(test_log_probs, temperature), labels),
    )


def _calibration_metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    scores = score_examples(log_probs, labels)
    return {
        **scores.metrics(),
        "adaptive_ece": equal_mass_error(scores.confidence, scores.is_right),
        "classwise_ece": classwise_ece_of_log_probs(log_probs, labels),
        "aurc": aurc(scores.top_log_prob, 1 - scores.is_right),
    }
