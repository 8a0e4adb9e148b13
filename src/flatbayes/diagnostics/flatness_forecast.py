"""Forecast of whether flatness pays, from what one plain training shows: its gap between validation and training.

    p(pays) = sigmoid(INTERCEPT + SLOPE log10(gap)),    gap = validation NLL - training loss, at the end, in nats

Flatness reduces overfitting, so it has little to gain where the gap is small. A logistic regression on the choice
half of the benchmark of the defaults, for MAP without early stopping; `pays` means that the radius of
`SAM(rho="auto")` is above 0, and its test NLL lower (studies/radius/forecast.py).

    forecast_flatness(train_loss=0.01, val_nll=0.9).text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

INTERCEPT, SLOPE = 0.0, 1.0
"""Coefficients of the logistic regression."""
MIN_GAP = 1e-3
"""Smallest gap in nats: smaller and negative ones count as this."""
ACCURACY = ""
"""Accuracy on the held-out half, as text."""


@dataclass(frozen=True)
class FlatnessForecast:
    """Forecast of whether a flatness pays.

    Attributes:
        gap: Validation NLL minus training loss of plain training, in nats.
        probability: Probability that it pays.

    Examples:
        >>> forecast_flatness(train_loss=0.01, val_nll=1.9).pays
        True
    """

    gap: float
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
            f"Flatness {verb} here (probability {self.probability:.2f}): the validation NLL of plain training is "
            f"{self.gap:.3g} above its training loss. {ACCURACY}"
        )


def forecast_flatness(train_loss: float, val_nll: float) -> FlatnessForecast:
    """Forecast whether a flatness pays.

    Args:
        train_loss: Mean training loss of plain training in its last epoch.
        val_nll: Validation NLL of its network at the end.

    Raises:
        ValueError: One of them is not finite.

    Examples:
        >>> forecast = forecast_flatness(train_loss=0.01, val_nll=0.02)
        >>> forecast.pays, round(forecast.gap, 2)
        (False, 0.01)
    """
    gap = val_nll - train_loss
    if not math.isfinite(gap):
        raise ValueError(
            f"A forecast needs a finite training loss and validation NLL, got {train_loss} and {val_nll}."
        )
    logit = INTERCEPT + SLOPE * math.log10(max(gap, MIN_GAP))
    return FlatnessForecast(gap, 1 / (1 + math.exp(-logit)))


def forecast_from_history(
    losses: Sequence[float | None], val_nlls: Sequence[float | None]
) -> FlatnessForecast | None:
    """Forecast from the history of a plain training; None without a validation.

    Args:
        losses: Training loss of each epoch; None where it was not recorded.
        val_nlls: Validation NLL of each epoch.

    Examples:
        >>> forecast_from_history([0.5, 0.2, 0.1], [None, 0.9, 1.1]).gap
        1.0
    """
    pairs = [(loss, nll) for loss, nll in zip(losses, val_nlls, strict=True) if loss is not None and nll is not None]
    finite = [pair for pair in pairs if math.isfinite(pair[0]) and math.isfinite(pair[1])]
    return forecast_flatness(*finite[-1]) if finite else None
