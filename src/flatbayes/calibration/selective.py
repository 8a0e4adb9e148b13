"""Selective prediction: a confidence below which a classifier abstains, for a wanted error rate of the rest.

Candidates are 0 and the confidences above which 95 %, 90 %, ..., 5 % of the validation examples lie. Given a
candidate, the examples above it are independent, so that their errors are binomial with the error rate of accepted
examples. A candidate is valid if that many errors or fewer had, at the wanted risk, a probability of at most
(1 - confidence) / 20: a Clopper-Pearson bound with Bonferroni's correction for the 20 candidates, as in Geifman and
El-Yaniv (NeurIPS 2017). The valid candidate that accepts most is taken.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flatbayes.calibration.targets import check_targets, warn_if_few
from flatbayes.core.names import format_count
from flatbayes.likelihoods import CategoricalPredictive, NumberPredictive

NUM_CANDIDATES = 20
"""Number of coverages that are tried, in equal steps up to 1."""


@dataclass(frozen=True)
class AbstentionThreshold:
    """A threshold of the confidence, with the error rate that is guaranteed above it; made by `fit_abstention`.

    Attributes:
        threshold: Lowest confidence of accepted predictions; infinite if no threshold is valid.
        risk: Error rate of accepted predictions that is guaranteed.
        confidence: Probability, over validation sets, that the guarantee holds.
        num_examples: Number of validation examples.
        coverage: Fraction of the validation examples that are accepted.
        observed_risk: Error rate of the accepted validation examples; NaN if there are none.

    Examples:
        >>> rule = AbstentionThreshold(0.7, 0.05, 0.95, 1000, coverage=0.8, observed_risk=0.03)
        >>> rule.describe()[:84]
        'abstain below a confidence of 0.7: 80 % of 1000 validation examples accepted, 3 % of'
    """

    threshold: float
    risk: float
    confidence: float
    num_examples: int
    coverage: float
    observed_risk: float

    def describe(self) -> str:
        """The threshold and its guarantee, as text."""
        if math.isinf(self.threshold):
            return (
                f"no threshold has an error rate of at most {100 * self.risk:g} % with confidence "
                f"{100 * self.confidence:g} % on {format_count(self.num_examples, 'validation example')}: abstain "
                "always, or allow a higher risk"
            )
        return (
            f"abstain below a confidence of {self.threshold:.4g}: {100 * self.coverage:.3g} % of "
            f"{format_count(self.num_examples, 'validation example')} accepted, {100 * self.observed_risk:.3g} % of "
            f"them wrong; at most {100 * self.risk:g} % of new accepted examples are wrong, with confidence "
            f"{100 * self.confidence:g} %, if they are independent and distributed like these"
        )


def fit_abstention(
    predictive: CategoricalPredictive, targets: Tensor, *, risk: float, confidence: float = 0.95
) -> AbstentionThreshold:
    """Choose the confidence below which to abstain; for `FittedPosterior.predict(inputs, abstain_below=...)`.

    Args:
        predictive: Predictions of validation examples that were used neither for training nor for a choice.
        targets: Their class indices.
        risk: Wanted error rate of accepted predictions, strictly between 0 and 1.
        confidence: Probability with which the error rate is to be reached, strictly between 0 and 1.

    Raises:
        TypeError: The predictions are not of one class of each example.
        ValueError: Risk or confidence are out of range, or the targets do not match the predictions.

    Warns:
        CalibrationWarning: There are too few examples for any threshold, even if all predictions are right.

    Examples:
        >>> rule = fit_abstention(fitted.predict(data.val.inputs), data.val.targets, risk=0.3)
        >>> predictive = fitted.predict(inputs, abstain_below=rule.threshold)
        >>> predictive.abstained.shape
        torch.Size([100])
    """
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(
            f"Only predictions of one class of each example have a confidence, got a {type(predictive).__name__}. "
            f"Compare its {'std' if isinstance(predictive, NumberPredictive) else 'entropy'} with a threshold of "
            "your own."
        )
    if not 0 < risk < 1 or not 0 < confidence < 1:
        raise ValueError(f"risk and confidence lie strictly between 0 and 1, got {risk} and {confidence}.")
    targets = check_targets(predictive, targets)
    num_required = math.ceil(math.log((1 - confidence) / NUM_CANDIDATES) / math.log1p(-risk))
    purpose = f"an error rate of {100 * risk:g} % with confidence {100 * confidence:g} %"
    warn_if_few(
        len(targets), num_required, purpose, "Even if all are right, the threshold is infinite: abstain always"
    )
    is_wrong = (predictive.top_class.cpu() != targets.cpu()).detach()
    confidences = predictive.confidence.detach().cpu().double()
    threshold = choose_threshold(confidences, is_wrong, risk, confidence)
    accepted = confidences >= threshold
    observed = float(is_wrong[accepted].double().mean()) if accepted.any() else math.nan
    return AbstentionThreshold(threshold, risk, confidence, len(targets), float(accepted.double().mean()), observed)


def choose_threshold(
    confidences: Float[Tensor, " examples"], is_wrong: Bool[Tensor, " examples"], risk: float, confidence: float
) -> float:
    """Lowest valid candidate for the error rate `risk`, with the probability `confidence`; infinite if none is."""
    from scipy.stats import binom  # slow to import

    ordered = confidences.sort(descending=True).values
    for step in range(NUM_CANDIDATES, 0, -1):
        rank = len(ordered) * step // NUM_CANDIDATES  # examples above the order statistic with this index from 0
        if step == NUM_CANDIDATES:
            threshold = 0.0
        else:  # just above an order statistic: examples above it are independent given it
            threshold = float(torch.nextafter(ordered[rank], torch.tensor(math.inf, dtype=torch.float64)))
        accepted = confidences >= threshold
        num_accepted, num_wrong = int(accepted.sum()), int(is_wrong[accepted].sum())
        if num_accepted and binom.cdf(num_wrong, num_accepted, risk) <= (1 - confidence) / NUM_CANDIDATES:
            return threshold
    return math.inf
