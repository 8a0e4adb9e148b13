"""Calibration of a fitted posterior on validation examples; the map belongs to the posterior from then on."""

from typing import Any

from flatbayes.calibration.maps import CalibrationMethod, fit_calibration
from flatbayes.prediction.calibrated import replace_calibration
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.fitted import FittedPosterior


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
    The argument is not changed, and both share their networks. An earlier calibration is replaced.

    Args:
        fitted: The posterior.
        data: Labelled validation examples in a form that `flatbayes.evaluate` takes, not used for training.
        targets: As for `flatbayes.evaluate`.
        num_draws: Networks to average.
        method: `temperature` (None), `vector` or `dirichlet` for classes, `scale` (None) for numbers.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.

    Raises:
        ValueError: The targets do not match the predictions, or the method is not for this kind of prediction.
        TypeError: There are no targets, or no calibration for this kind of prediction.

    Examples:
        >>> calibrated = calibrate(fitted, data.val, num_draws=5)
        >>> evaluation = evaluate(calibrated, data.test, num_draws=5)
        >>> evaluation.metrics["accuracy"] == evaluation.raw_metrics["accuracy"]
        True
        >>> evaluation.metrics["nll"] != evaluation.raw_metrics["nll"]
        True
    """
    raw = replace_calibration(fitted, None)
    predictive, targets, _ = predict_labelled(raw, data, targets, num_draws, batch_size=batch_size, seed=seed)
    return replace_calibration(raw, fit_calibration(predictive, targets, method))
