"""Metrics and reliability of predictions on labelled examples."""

import pytest
import torch

from flatbayes.core import State
from flatbayes.likelihoods import Categorical, Custom, Gaussian
from flatbayes.likelihoods.likelihood import Likelihood
from flatbayes.metrics import ReliabilityBins, coverage_curve, crps
from flatbayes.posteriors import MAP
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.prediction.labelled import infer_task
from support import batch


def make_linear_posterior(likelihood):
    """mean = x + 1, raw scale = -x."""
    model = torch.nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    return FittedPosterior(MAP(), [State(model, None, 10)], likelihood)


def test_classifier(fitted):
    evaluation = evaluate(fitted, *batch(0), num_draws=3)
    assert list(evaluation.metrics)[:2] == ["accuracy", "nll"]
    assert isinstance(evaluation.reliability, ReliabilityBins)


def test_regression():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y, posterior = x[:, 0] + 1.5, make_linear_posterior(Gaussian())
    evaluation, predictive = evaluate(posterior, x, y), posterior.predict(x)
    assert evaluation.metrics["rmse"] == pytest.approx(0.5)
    assert evaluation.metrics["nll"] == pytest.approx(-predictive.log_prob(y).mean().item())
    assert evaluation.metrics["crps"] == crps(predictive.member_means, predictive.member_stds, y)
    low, high = predictive.interval(0.95)
    assert evaluation.metrics["width_95"] == pytest.approx((high - low).mean().item())
    assert evaluation.reliability == coverage_curve(predictive.cdf(y))
    assert evaluation.num_networks == 1


def test_targets_are_not_broadcast():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    assert evaluate(make_linear_posterior(Gaussian()), x, x + 1).metrics["rmse"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"9 predictions of the shape \(9,\), and targets of the shape \(8,\)"):
        evaluate(make_linear_posterior(Gaussian()), x, x[1:, 0])


def test_missing_targets_are_refused():
    x = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 of the targets is missing or not finite"):
        evaluate(make_linear_posterior(Gaussian()), x, torch.tensor([1.0, float("nan"), 2.0]))


def test_a_predictive_without_metrics_is_refused():
    class CustomLikelihood(Likelihood):
        num_outputs = 2
        loss = predictive = lambda self, outputs, *_, **__: CustomPredictive()

    class CustomPredictive:
        @classmethod
        def concatenate(cls, predictions):
            return predictions[0]

    with pytest.raises(TypeError, match="no metrics for a CustomPredictive yet"):
        evaluate(make_linear_posterior(CustomLikelihood()), torch.zeros(3, 1), torch.zeros(3))


class ScaledGaussian(Gaussian):
    """A likelihood of a user."""


@pytest.mark.parametrize(
    ("likelihood", "task"),
    [
        *((likelihood, "regression") for likelihood in (Gaussian(), Gaussian, "gaussian", ScaledGaussian())),
        (Custom(torch.nn.MSELoss(), ScaledGaussian()), "regression"),
        *((likelihood, None) for likelihood in (None, "categorical", Categorical(2), Categorical)),
    ],
)
def test_the_task_of_a_likelihood(likelihood, task):
    assert infer_task(likelihood) == task
