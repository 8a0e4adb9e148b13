"""Numbers to predict, end to end: every posterior fits them, in any unit, and knows the noise."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import DataSplits, Split
from flatbayes.flatness import SAM, Plain
from flatbayes.likelihoods import Gaussian
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import CollectionConfig, History, OptimizationConfig, TrainingConfig, dry_run, fit

SHORT = TrainingConfig(
    epochs=3,
    batch_size=16,
    collection=CollectionConfig(start_fraction=0.0),
    num_validations=1,
    optimization=OptimizationConfig(clip_norm=1.0),
)
NOISE = 5.0


def line(n=600, targets=1, unit=1.0, offset=0.0):
    """y = 100 + 20 x + noise of standard deviation 5, three times over."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator)
    y = 100 + 20 * x[:, :1] + NOISE * torch.randn(n, targets, generator=generator)
    y = unit * (y.squeeze(1) if targets == 1 else y) + offset
    parts = [Split(inputs=i, targets=t) for i, t in zip(x.split(n // 3), y.split(n // 3), strict=True)]
    return DataSplits(
        train=parts[0],
        val=parts[1],
        test=parts[2],
        class_names=(),
        target_names=("y", "z")[:targets],
        feature_names=("a", "b"),
        augment=None,
    )


@pytest.mark.parametrize("flatness", [Plain(), SAM()], ids=str)
@pytest.mark.parametrize("posterior", [MAP(), MCDropout(rate=0.1), SWAG(rank=2), Ensemble(size=2)], ids=str)
@pytest.mark.parametrize("targets", [1, 2])
def test_fits_predicts_saves_loads(posterior, flatness, targets, tmp_path):
    data = line(60, targets)
    model = partial(MLP, hidden=(6,))
    dry_run(model, data, posterior, flatness, SHORT)
    fitted = fit(model, data, posterior, flatness, SHORT)
    predictive = fitted.predict(data.test.inputs, 3)
    assert predictive.mean.shape == data.test.targets.shape
    assert fitted.info["target_names"] == ["y", "z"][:targets]
    assert fitted.info["class_names"] == []
    fitted.save(tmp_path)
    again = FittedPosterior.load(tmp_path)
    assert again.likelihood == fitted.likelihood
    assert replace(fitted.likelihood, initial_std=()) == Gaussian.fit(data.train.targets)
    assert torch.equal(again.predict(data.test.inputs, 3).member_means, predictive.member_means)


@pytest.mark.parametrize("constant_scale", [False, True])
def test_it_learns_the_line_and_the_noise(constant_scale):
    data, linear = line(), partial(MLP, hidden=(), constant_scale=constant_scale)
    fitted = fit(linear, data, MAP(), Plain(), replace(SHORT, epochs=60))
    predictive = fitted.predict(data.test.inputs)
    errors = predictive.mean - (100 + 20 * data.test.inputs[:, 0].double())
    assert errors.square().mean().sqrt() < 1.5  # of 200 examples, the intercept alone is known to 0.35
    assert predictive.std.mean().item() == pytest.approx(NOISE, rel=0.15)
    metrics = evaluate(fitted, data.test.inputs, data.test.targets).metrics
    best = -torch.distributions.Normal(0, NOISE).log_prob(torch.tensor(0.0)).item() + 0.5
    assert metrics["nll"] == pytest.approx(best, abs=0.1)
    assert metrics["rmse"] == pytest.approx(NOISE, rel=0.1)
    assert metrics["coverage_95"] == pytest.approx(0.95, abs=0.04)
    assert metrics["miscalibration"] < 0.07


def test_the_unit_of_the_targets_does_not_matter():
    """In thousandths and counted from elsewhere, the same networks come out."""
    ways = [(1.0, 0.0), (1000.0, 5e4)]
    found = []
    for unit, offset in ways:
        data = line(150, unit=unit, offset=offset)
        fitted = fit(
            partial(MLP, hidden=(6,)), data, SWAG(rank=2), SAM(), SHORT.with_options(precision={"mode": "64-true"})
        )
        predictive = fitted.predict(data.test.inputs, 5)
        found.append(((predictive.mean - offset) / unit, predictive.std / unit))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)


def test_the_curve_s_validation_loss_is_the_nll():
    data, curves = line(90), History()
    fitted = fit(partial(MLP, hidden=(6,)), data, MAP(), Plain(), SHORT, callback=curves)
    expected = evaluate(fitted, data.val.inputs, data.val.targets).metrics["nll"]
    assert curves.records[-1]["val_nll"] == pytest.approx(expected, rel=1e-5)


def test_a_loader_with_a_likelihood():
    data = line(90)
    loader = DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=10)
    likelihood = Gaussian.fit(data.train.targets)
    fitted = fit(partial(MLP, (2,), 2), loader, MAP(), Plain(), SHORT, likelihood=likelihood)
    assert fitted.predict(data.test.inputs).mean.shape == (30,)
    assert fit(partial(MLP, (2,), 2), loader, MAP(), Plain(), SHORT).likelihood == likelihood


def test_a_model_may_ask_for_its_outputs_by_either_name():
    def make(num_outputs, input_shape):
        return torch.nn.Linear(input_shape[0], num_outputs)

    assert fit(make, line(60), MAP(), Plain(), SHORT).predict(torch.zeros(3, 2)).mean.shape == (3,)


def test_the_wrong_number_of_outputs_says_what_is_expected():
    with pytest.raises(ValueError, match=r"raw scale to predict for 1 target: expected \(batch, 2\)"):
        fit(torch.nn.Linear(2, 1), line(60), MAP(), Plain(), SHORT)


def test_a_target_that_is_constant_in_training_is_an_error():
    data = line(60)
    constant = replace(data, train=Split(inputs=data.train.inputs, targets=torch.full((20,), 3.0)))
    with pytest.raises(ValueError, match="Target 0 is 3 in all 20 training examples"):
        fit(MLP, constant, MAP(), Plain(), SHORT)
