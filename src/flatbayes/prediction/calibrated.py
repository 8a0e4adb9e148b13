"""Exchange of the calibration of a fitted posterior."""

import copy

from flatbayes.calibration import CalibrationMap
from flatbayes.prediction.fitted import FittedPosterior


def replace_calibration(fitted: FittedPosterior, calibration: CalibrationMap | None) -> FittedPosterior:
    """A posterior with the same networks and another calibration, or none.

    Args:
        fitted: The posterior, which is not changed; both share their networks.
        calibration: The map of its predictions; None for none.

    Examples:
        >>> calibrated = calibrate(fitted, data.val, num_draws=5)
        >>> raw = replace_calibration(calibrated, None)
        >>> torch.equal(raw.predict(inputs).mean, fitted.predict(inputs).mean)
        True
    """
    copied = copy.copy(fitted)
    copied._prediction_cache = None  # of predictions with the earlier calibration
    copied.info = {name: value for name, value in fitted.info.items() if name != "calibration"}
    if calibration is not None:
        copied.info["calibration"] = calibration.to_dict()
    return copied
