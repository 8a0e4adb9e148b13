"""Forecast of whether flatness pays, from what one plain training shows: how far its validation NLL has risen again.

    p(pays) = sigmoid(INTERCEPT + SLOPE log10(rise)),   rise = validation NLL at the end - lowest one on the way, nats

Flatness reduces overfitting, so it has little to gain where the validation NLL is at its lowest at the end,
with early stopping for example. The logistic regression is that of 107 pairs of plain and flat training on 23 data
sets, ten methods on seven of them, without early stopping (studies/law). `pays` means that flat training has the
lower test NLL at a radius that was chosen on validation examples. The gap to the training loss, the sharpness at a
distance of 0.05 and the number of weights per example rank the gains less well. For
pretrained networks the threshold is too low (right in 27 of 62 pairs): trust it where the rise is above 0.03.

    forecast_flatness(val_nll=1.1, lowest_val_nll=0.8).text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

INTERCEPT, SLOPE = 2.64, 1.11
"""Coefficients of the logistic regression; the probability is a half at a rise of 0.0042."""
MIN_RISE = 1e-3
"""Smallest rise in nats: smaller ones count as this."""
ACCURACY = "right in 80 % of the pairs of data sets left out, in which the more frequent outcome had 72 %"
"""Accuracy on data sets left out; its 95 % interval is 65 to 93 %."""


@dataclass(frozen=True)
class FlatnessForecast:
    """Forecast of whether a flatness pays.

    Attributes:
        rise: Validation NLL at the end of plain training minus the lowest one, in nats.
        probability: Probability that it pays.

    Examples:
        >>> FlatnessForecast(rise=0.3, probability=0.89).pays
        True
    """

    rise: float
    probability: float

    @property
    def pays(self) -> bool:
        """Whether the probability is at least a half."""
        return self.probability >= 0.5

    @property
    def text(self) -> str:
        """The forecast as a sentence, with the accuracy of the rule."""
        verb = "probably pays" if self.pays else "probably does not pay"
        return (
            f"flatness {verb} here ({self.probability:.0%}), since the validation NLL of plain training ends "
            f"{self.rise:.3g} above its lowest value (a rule that was {ACCURACY})."
        )


def forecast_flatness(val_nll: float, lowest_val_nll: float) -> FlatnessForecast:
    """Forecast whether a flatness pays.

    Args:
        val_nll: Validation NLL of the network at the end of plain training.
        lowest_val_nll: The lowest one of all evaluations on the way.

    Raises:
        ValueError: One of them is not finite.

    Examples:
        >>> forecast = forecast_flatness(val_nll=0.312, lowest_val_nll=0.31)
        >>> forecast.pays, round(forecast.probability, 2)
        (False, 0.41)
    """
    rise = val_nll - lowest_val_nll
    if not math.isfinite(rise):
        raise ValueError(f"A forecast needs finite validation NLLs, got {val_nll} and {lowest_val_nll}.")
    logit = INTERCEPT + SLOPE * math.log10(max(rise, MIN_RISE))
    return FlatnessForecast(rise, 1 / (1 + math.exp(-logit)))


def forecast_from_history(val_nlls: Sequence[float | None]) -> FlatnessForecast | None:
    """Forecast from the history of a plain training; None with fewer than two evaluations.

    Args:
        val_nlls: Validation NLL after each epoch; None where there was no evaluation.

    Examples:
        >>> round(forecast_from_history([None, 0.8, None, 1.1]).rise, 2)
        0.3
    """
    finite = [nll for nll in val_nlls if nll is not None and math.isfinite(nll)]
    return forecast_flatness(finite[-1], min(finite)) if len(finite) > 1 else None
