import pytest
import torch

from flatbayes.core import State
from flatbayes.likelihoods import Gaussian
from flatbayes.likelihoods.likelihood import Likelihood
from flatbayes.metrics import ReliabilityBins, coverage_curve, crps
from flatbayes.posteriors import MAP
from flatbayes.prediction import FittedPosterior, evaluate
from support import batch


def line(likelihood):
    """mean = x + 1, raw scale = -x."""
    model = torch.nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    return FittedPosterior(MAP(), [State(model, None, 10)], likelihood)


def test_of_a_classifier(fitted):
    found = evaluate(fitted, *batch(0), num_draws=3)
    assert list(found.metrics)[:2] == ["accuracy", "nll"]
    assert isinstance(found.reliability, ReliabilityBins)


def test_of_a_regression():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y, posterior = x[:, 0] + 1.5, line(Gaussian())
    found, predictive = evaluate(posterior, x, y), posterior.predict(x)
    assert found.metrics["rmse"] == pytest.approx(0.5)
    assert found.metrics["nll"] == pytest.approx(-predictive.log_prob(y).mean().item())
    assert found.metrics["crps"] == crps(predictive.member_means, predictive.member_stds, y)
    low, high = predictive.interval(0.95)
    assert found.metrics["width_95"] == pytest.approx((high - low).mean().item())
    assert found.reliability == coverage_curve(predictive.cdf(y))
    assert found.num_networks == 1


def test_a_column_of_targets_is_not_compared_with_all():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    assert evaluate(line(Gaussian()), x, x + 1).metrics["rmse"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"9 predictions of the shape \(9,\), and targets of the shape \(8,\)"):
        evaluate(line(Gaussian()), x, x[1:, 0])


def test_missing_targets_are_refused():
    x = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 targets are missing or not finite"):
        evaluate(line(Gaussian()), x, torch.tensor([1.0, float("nan"), 2.0]))


def test_a_predictive_without_metrics_is_named():
    class Other(Likelihood):
        num_outputs = 2
        loss = predictive = lambda self, outputs, *_, **__: Unknown()

    class Unknown:
        @classmethod
        def concatenate(cls, predictions):
            return predictions[0]

    with pytest.raises(TypeError, match="no metrics for a Unknown yet"):
        evaluate(line(Other()), torch.zeros(3, 1), torch.zeros(3))
