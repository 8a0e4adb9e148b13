"""Distributions of numbers from `fit` to conformal intervals: counts, targets with outliers, counts of pixels."""

from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import distributions as td
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    IVON,
    MAP,
    MLP,
    SGLD,
    SGVB,
    SWAG,
    Categorical,
    DistributionLikelihood,
    Ensemble,
    FittedPosterior,
    Gaussian,
    Laplace,
    MCDropout,
    TrainingConfig,
    calibrate,
    check,
    compare,
    conformalize,
    evaluate,
    fit,
)
from flatbayes.data import Arrays
from flatbayes.metrics.definitions import REGRESSION_METRICS
from flatbayes.reference.result import measure_distances

CONFIG = TrainingConfig(epochs=3)
MODEL = partial(MLP, hidden=(16,))
OWN = DistributionLikelihood(lambda outputs: td.Poisson(outputs[:, 0].exp()), num_outputs=1)


def make_counts(num_examples=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 3, generator=generator)
    rates = (1 + inputs[:, 0]).exp()
    return inputs, torch.poisson(rates, generator=generator), rates


X, Y, RATES = make_counts()


@pytest.fixture(scope="module")
def fitted():
    return fit(MODEL, (X, Y), SWAG(), config=TrainingConfig(epochs=15), likelihood="poisson")


@pytest.mark.parametrize("likelihood", ["negative_binomial", OWN])
@pytest.mark.parametrize(
    "posterior",
    [MAP(), SWAG(), SGVB(), SGLD(), MCDropout(), Ensemble(size=2), IVON(), Laplace()],
    ids=lambda p: type(p).__name__,
)
def test_every_kind_of_posterior_predicts_counts(posterior, likelihood):
    model = partial(MODEL, dropout=0.1) if isinstance(posterior, MCDropout) else MODEL
    posterior = fit(model, (X, Y), posterior, config=CONFIG, likelihood=likelihood)
    evaluation = evaluate(posterior, (X, Y), num_draws=4)
    assert list(evaluation.metrics) == list(REGRESSION_METRICS)
    assert all(value == value for value in evaluation.metrics.values())
    predictive = posterior.predict(X[:5], num_draws=4)
    assert predictive.mutual_information.shape == (5,)
    assert torch.equal(predictive.interval()[0], predictive.interval()[0].round())


def test_rates_are_recovered_and_the_nll_is_below_that_of_a_gaussian(fitted):
    inputs, counts, rates = make_counts(1000, seed=1)
    gaussian = fit(MODEL, (X, Y), SWAG(), config=TrainingConfig(epochs=15), likelihood=Gaussian)
    nll, of_gaussian = (evaluate(each, (inputs, counts)).metrics["nll"] for each in (fitted, gaussian))
    best = -td.Poisson(rates).log_prob(counts).mean()
    assert best - 0.05 < nll < best + 0.15 < of_gaussian
    errors = (fitted.predict(inputs).mean - rates).abs() / rates
    assert errors.median() < 0.2


def test_real_counts_have_a_lower_nll_than_with_a_gaussian():
    pixels = torch.tensor(load_digits().data).float()  # numbers of dark points in blocks of 4 x 4
    inputs, counts = pixels[:, :24] / 16, pixels[:, 26]
    train, test = (inputs[:1200], counts[:1200]), (inputs[1200:], counts[1200:])
    config = TrainingConfig(epochs=15)
    nlls = {
        str(likelihood): evaluate(fit(MODEL, train, MAP(), config=config, likelihood=likelihood), test).metrics["nll"]
        for likelihood in ("ZeroInflatedPoisson", "gaussian")
    }
    assert nlls["ZeroInflatedPoisson"] < nlls["gaussian"]


def test_outliers_do_less_harm_than_with_a_gaussian():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 2, generator=generator)
    noise = torch.randn(600, generator=generator)
    noise[::20] *= 50
    targets = 1e6 + 1e5 * (inputs[:, 0] + 0.2 * noise)
    config = TrainingConfig(epochs=20)
    scores = [
        evaluate(
            fit(MODEL, (inputs[:400], targets[:400]), MAP(), config=config, likelihood=name),
            (inputs[400:], targets[400:]),
        )
        for name in ("StudentT", "gaussian")
    ]
    assert scores[0].metrics["nll"] < scores[1].metrics["nll"] - 0.3


def test_an_artefact_holds_a_name_and_takes_a_function(fitted, tmp_path):
    fitted.save(tmp_path / "named")
    again = FittedPosterior.load(tmp_path / "named")
    assert again.likelihood == fitted.likelihood == DistributionLikelihood.fit("Poisson", Y)
    assert torch.equal(again.predict(X).interval()[1], fitted.predict(X).interval()[1])
    own = fit(MODEL, (X, Y), MAP(), config=CONFIG, likelihood=OWN)
    own.save(tmp_path / "own")
    with pytest.raises(ValueError, match="user code, which is not saved: pass `likelihood`"):
        FittedPosterior.load(tmp_path / "own")
    assert torch.equal(FittedPosterior.load(tmp_path / "own", likelihood=OWN).predict(X).mean, own.predict(X).mean)


def test_conformal_intervals_of_counts_have_whole_numbers(fitted):
    inputs, counts, _ = make_counts(600, seed=2)
    conformal = conformalize(fitted, (inputs[:300], counts[:300]), level=0.8)
    region = conformal.predict(inputs[300:])
    assert torch.equal(region.lower, region.lower.round())
    assert (region.lower >= 0).all()
    assert conformal.evaluate((inputs[300:], counts[300:])).coverage > 0.75


def test_a_calibration_map_is_refused_with_advice(fitted):
    with pytest.raises(TypeError, match="no calibration map for the predictions of a DistributionLikelihood"):
        calibrate(fitted, (X[:100], Y[:100]))


def test_checks_run(fitted):
    inputs, counts, _ = make_counts(300, seed=3)
    report = check(fitted, (inputs, counts))
    assert {"one_network", "coverage", "confidence"} <= {finding.name for finding in report.findings}
    assert report["coverage"].passed


def test_predictions_have_a_distance(fitted):
    predictive = fitted.predict(X)
    assert measure_distances(predictive, predictive) == {"w1": 0.0}


def test_a_loader_of_integers_takes_a_name():
    loader = DataLoader(TensorDataset(X, Y.long()), 50)
    model = partial(MLP, input_shape=(3,), num_classes=2, hidden=(8,))
    fitted = fit(model, loader, MAP(), config=CONFIG, likelihood="NegativeBinomial")
    assert fitted.likelihood == DistributionLikelihood.fit("NegativeBinomial", Y)
    assert evaluate(fitted, loader).metrics["nll"] > 0


def test_comparisons_take_a_name():
    source = Arrays(X, Y.long(), val_size=0.2, test_size=0.2)
    results = compare(MODEL, source, [MAP()], config=CONFIG, num_seeds=1, num_jobs=1, likelihood="poisson")
    assert not results.failures
    assert results.runs[0].metrics["nll"] > 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [(Y - 1, "the first, -1, in row"), (Y + 0.5, "the first, [0-9.]*5, in row"), (Y * 0 + 2, "is 2 in all")],
)
def test_targets_that_are_no_counts_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        fit(MODEL, (X, targets), MAP(), config=CONFIG, likelihood="Poisson")


def test_those_of_an_evaluation_too(fitted):
    with pytest.raises(
        ValueError, match="outside of the support of Poisson, whole numbers of at least 0, the first, -1"
    ):
        evaluate(fitted, (X[:1], torch.tensor([-1.0])))


def test_validation_targets_are_named():
    with pytest.raises(ValueError, match="Of the val examples, 1 target is outside of the support"):
        fit(MODEL, (X, Y), MAP(), config=CONFIG, likelihood=OWN, val=(X[:2], torch.tensor([1.0, -1.0])))


def test_unknown_names_are_refused_with_those_that_are_known():
    with pytest.raises(TypeError, match=r"Did you mean Poisson\? Give the name of a distribution \(Poisson, Neg"):
        fit(MODEL, (X, Y.long()), MAP(), config=CONFIG, likelihood="poison")


def test_classes_are_refused():
    with pytest.raises(ValueError, match="numbers|target"):
        fit(MODEL, (X, ["a", "b"] * 200), MAP(), config=CONFIG, likelihood="Poisson")


def test_many_whole_numbers_are_answered_with_counts():
    for targets in (Y, Y.long(), torch.arange(400) * 3, torch.arange(400)):
        with pytest.raises(ValueError, match='likelihood="Poisson"'):
            fit(MODEL, (X, targets), MAP(), config=CONFIG)
    assert fit(MODEL, (X, Y.clamp_max(2).long()), MAP(), config=CONFIG).likelihood == Categorical(3)
