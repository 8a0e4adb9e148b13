"""Estimators in the tools of scikit-learn."""

import pickle
from collections import defaultdict
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import has_fit_parameter
from torch import nn

from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.flatness import ASAM, SAM, Plain
from flatbayes.likelihoods import Categorical, Custom
from flatbayes.models import ConvNet
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig
from flatbayes.training.preparation import prepare_runs

SMALL = {"hidden": (16,), "epochs": 12, "num_draws": 5, "random_state": 0}


def list_checks():
    """The checks of scikit-learn; one that both estimators share is slow on either of them in turns."""
    mark = parametrize_with_checks([FlatBayesClassifier(**SMALL), FlatBayesRegressor(**SMALL)])
    get_id, pairs_by_check = mark.kwargs["ids"], defaultdict(list)
    for estimator, check in mark.args[1]:
        pairs_by_check[get_id(check)].append((estimator, check))
    for turn, (name, pairs) in enumerate(pairs_by_check.items()):
        for k, (estimator, check) in enumerate(pairs):
            marks = [] if k == turn % len(pairs) else [pytest.mark.slow]
            yield pytest.param(estimator, check, id=f"{type(estimator).__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), list(list_checks()))
@pytest.mark.filterwarnings("ignore")
def test_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True, scaled=False)


def test_pipeline_grid_search_and_cross_validation(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), FlatBayesClassifier(**SMALL))
    grid = {"flatbayesclassifier__flatness__rho": [0.0, 0.1], "flatbayesclassifier__hidden": [(8,), (16,)]}
    search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    assert search.best_score_ > -0.5
    assert search.best_estimator_[-1].flatness.rho == search.best_params_["flatbayesclassifier__flatness__rho"]
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    probs = cross_val_predict(pipeline, X, y, cv=2, method="predict_proba")
    assert probs.shape == (150, 3)
    np.testing.assert_allclose(probs.sum(1), 1)


def test_string_labels_and_feature_names(iris):
    X, y = iris
    table = pd.DataFrame(X, columns=list("abcd"))
    words = pd.Series(np.array(["setosa", "versicolor", "virginica"])[y])
    estimator = FlatBayesClassifier(**SMALL).fit(table, words)
    assert list(estimator.classes_) == ["setosa", "versicolor", "virginica"]
    assert list(estimator.feature_names_in_) == list("abcd")
    assert estimator.posterior_.info["feature_names"] == list("abcd")
    assert estimator.posterior_.info["class_names"] == list(estimator.classes_)
    assert estimator.score(table, words) > 0.9
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(table.rename(columns={"a": "z"}))


def test_the_fitted_posterior_predicts_saves_and_compiles(iris, tmp_path):
    X, y = iris
    estimator = FlatBayesClassifier(**SMALL).fit(X, y)
    x = torch.from_numpy(X)
    expected = estimator.posterior_.predict(x, 5, seed=estimator.seed_, vectorized=False)
    np.testing.assert_array_equal(estimator.predict_proba(X), expected.mean)
    np.testing.assert_array_equal(estimator.predict_std(X), expected.variance.sqrt())
    again = FittedPosterior.load(estimator.posterior_.save(tmp_path))
    assert torch.equal(again.predict(x, 5, seed=estimator.seed_, vectorized=False).mean, expected.mean)
    answer = estimator.posterior_.compile(5, seed=estimator.seed_)(x)
    torch.testing.assert_close(answer["mean"], expected.mean.float(), rtol=1e-4, atol=1e-5)


def test_predictions_have_the_unit_of_the_targets(diabetes):
    X, y = diabetes
    estimator = FlatBayesRegressor(**SMALL).fit(X, y)
    mean, std = estimator.predict(X, return_std=True)
    assert estimator.score(X, y) > 0.4
    np.testing.assert_array_equal(std, estimator.predict_std(X))
    epistemic = estimator.predict_std(X, epistemic=True)
    assert (epistemic < std).all()
    assert (epistemic > 0).any()
    within = np.abs(y - mean) < 2 * std
    assert 0.85 < within.mean() <= 1
    shifted = FlatBayesRegressor(**SMALL).fit(X, 1000 * y + 5000)
    np.testing.assert_allclose(shifted.predict(X), 1000 * mean + 5000, rtol=1e-2)


def test_several_targets(diabetes):
    X, y = diabetes
    two = FlatBayesRegressor(**SMALL).fit(X, np.stack([y, -2 * y], 1))
    mean, std = two.predict(X[:7], return_std=True)
    assert mean.shape == std.shape == (7, 2)
    assert two.score(X, np.stack([y, -2 * y], 1)) > 0.4
    column = FlatBayesRegressor(**SMALL).fit(X, y[:, None])
    assert column.predict(X[:7]).shape == column.predict_std(X[:7]).shape == (7, 1)


def test_counts_have_a_likelihood():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(300, 3))
    counts = random.poisson(np.exp(1 + inputs[:, 0]))
    regressor = FlatBayesRegressor(SWAG(rank=2), Plain(), likelihood="poisson", epochs=30, random_state=0)
    regressor = clone(regressor).fit(inputs, counts)
    assert regressor.get_params()["likelihood"] == "poisson"
    mean, std = regressor.predict(inputs, return_std=True)
    assert np.corrcoef(np.log(mean), inputs[:, 0])[0, 1] > 0.95
    np.testing.assert_allclose(std**2, mean + regressor.predict_std(inputs, epistemic=True) ** 2)
    assert float(regressor.predict_distribution(inputs).interval(0.9)[1].frac().abs().sum()) == 0
    grid = {"likelihood": ["negative_binomial", None, "StudentT"]}
    search = GridSearchCV(FlatBayesRegressor(MAP(), Plain(), epochs=3, random_state=0), grid, cv=2)
    assert search.fit(inputs, np.stack([counts, counts + 1], 1)).predict(inputs[:2]).shape == (2, 2)
    with pytest.raises(ValueError, match="targets are outside of the support of Poisson"):
        regressor.fit(inputs, counts - 1)
    with pytest.raises(ValueError, match="the targets are classes"):
        FlatBayesClassifier(MAP(), likelihood="poisson", epochs=1).fit(inputs, counts > 2)


def test_a_classifier_takes_a_loss(iris):
    weights = torch.tensor([1.0, 1.0, 20.0])
    loss = Custom(nn.CrossEntropyLoss(weights), Categorical(3))
    shares = [
        FlatBayesClassifier(MAP(), Plain(), likelihood=likelihood, epochs=3, random_state=0)
        .fit(*iris)
        .predict_proba(iris[0])[:, 2]
        .mean()
        for likelihood in (None, loss)
    ]
    assert shares[1] > shares[0] + 0.1


def test_random_state_determines_the_fit(iris):
    X, y = iris
    classifier = FlatBayesClassifier(**SMALL)
    first = classifier.fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(clone(classifier).fit(X, y).predict_proba(X), first)
    assert not np.array_equal(classifier.set_params(random_state=1).fit(X, y).predict_proba(X), first)
    state = torch.get_rng_state()
    unseeded = classifier.set_params(random_state=None).fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(classifier.fit(X, y).predict_proba(X), unseeded)


def test_a_fitted_estimator_can_be_pickled(iris):
    X, y = iris
    estimator = FlatBayesClassifier(**SMALL, flatness=ASAM()).fit(X, y)
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict_proba(X), estimator.predict_proba(X))


def test_nested_parameters():
    estimator = FlatBayesClassifier(Ensemble(SWAG(rank=3), size=2), ASAM(), config=TrainingConfig(epochs=3))
    params = estimator.get_params()
    assert params["posterior__member__rank"] == 3
    assert params["flatness__rho"] == ASAM().rho
    assert params["config__epochs"] == 3
    assert not [name for name in estimator.get_params(deep=False) if "__" in name]
    estimator.set_params(posterior__member__rank=7, posterior__size=5, flatness=SAM(), flatness__rho=0.3)
    assert estimator.posterior == Ensemble(SWAG(rank=7), size=5)
    assert estimator.flatness == SAM(rho=0.3)
    with pytest.raises(ValueError, match=r"flatness is SAM\(rho=0.3.*'radius'.*Valid parameters"):
        estimator.set_params(flatness__radius=1)
    with pytest.raises(ValueError, match="Invalid parameter 'rho'"):
        estimator.set_params(rho=1)
    default = FlatBayesRegressor()
    assert default.get_params()["flatness__rho"] == SAM().rho
    assert default.set_params(flatness__rho=0.2).flatness == SAM(rho=0.2)
    assert default.posterior is None


def test_config_replaces_plain_parameters(iris):
    X, y = iris
    estimator = FlatBayesClassifier(MAP(), Plain(), config=TrainingConfig(epochs=2), epochs=9).fit(X, y)
    assert estimator.n_iter_ == 2
    still = FlatBayesClassifier(MAP(), Plain(), epochs=1, learning_rate=1e-9, random_state=0)
    first, second = (
        next(clone(still).fit(X[::step], y[::step]).posterior_.states[0].model.parameters()) for step in (1, 3)
    )
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)  # both equal the initial weights
    with pytest.raises(ValueError, match="at least 2 collected snapshots"):
        FlatBayesClassifier(config=TrainingConfig(epochs=1, collection=CollectionConfig(snapshots_per_epoch=1))).fit(
            X, y
        )


def test_images():
    torch.manual_seed(0)
    y = np.arange(40) % 2
    X = np.random.default_rng(0).normal(size=(40, 1, 8, 8)) + y[:, None, None, None]
    estimator = FlatBayesClassifier(model=partial(ConvNet, width=4), epochs=10, random_state=0).fit(X, y)
    assert estimator.score(X, y) > 0.9


def test_invalid_data_raise(iris):
    X, y = iris
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class, '0'"):
        FlatBayesClassifier(**SMALL).fit(X, np.zeros(150, dtype=int))
    with pytest.raises(ValueError, match="nothing to learn"):
        FlatBayesRegressor(**SMALL).fit(X, np.zeros(150))
    with pytest.raises(NotFittedError):
        FlatBayesClassifier().predict(X)
    with pytest.raises(ValueError, match="NaN"):
        FlatBayesClassifier(**SMALL).fit(np.where(X > 7, np.nan, X), y)


def test_a_radius_is_chosen_on_held_out_examples(iris):
    X, y = iris
    estimator = FlatBayesClassifier(MAP(), SAM(rho="auto"), epochs=12, hidden=(4,), random_state=0).fit(X, y)
    record = estimator.posterior_.info["radius"]
    assert [radius for radius, _ in record["scores"]] == [0.0, 0.1, 1.0]
    assert estimator.posterior_.states[0].num_data < len(X)
    assert FlatBayesClassifier().set_params(flatness__rho="auto").flatness == SAM(rho="auto")


@pytest.mark.parametrize("estimator", [FlatBayesClassifier(), FlatBayesRegressor()], ids=["classes", "numbers"])
def test_weights_of_rows_are_refused_in_fit_with_advice(iris, estimator):
    x, y = iris
    weights = np.ones(len(x))
    for fitting in (estimator.fit, make_pipeline(estimator).fit):
        name = "" if fitting == estimator.fit else f"{type(estimator).__name__.lower()}__"
        with pytest.raises(TypeError, match=r"got sample_weight\. All rows have the same weight.*np.repeat"):
            fitting(x, y, **{f"{name}sample_weight": weights})
    with pytest.raises(TypeError, match="got groups.$"):
        estimator.fit(x, y, groups=weights)
    assert not has_fit_parameter(estimator, "sample_weight")


def test_score_takes_weights_of_rows(iris):
    x, y = iris
    classifier = FlatBayesClassifier(MAP(), Plain(), epochs=1, random_state=0).fit(x, y)
    counts = np.arange(len(x)) % 3
    repeated = classifier.score(np.repeat(x, counts, axis=0), np.repeat(y, counts))
    assert classifier.score(x, y, sample_weight=counts) == pytest.approx(repeated)


def test_a_learning_rate_keeps_the_default_optimizer_of_the_network(iris):
    estimator = FlatBayesClassifier(MAP(), Plain(), learning_rate=0.002, epochs=1)
    config = estimator._resolve_training_config()
    networks = {"SGD": nn.Linear(4, 3), "AdamW": nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))}
    for name, network in networks.items():
        factory, _ = prepare_runs(network, iris, MAP(), Plain(), config)
        optimizer = factory.config.optimizer
        assert (optimizer.func.__name__, optimizer.keywords["lr"]) == (name, 0.002)


def test_units_of_a_single_layer_are_a_tuple(iris):
    with pytest.raises(TypeError, match=r"such as \(16,\)"):
        FlatBayesClassifier(hidden=16).fit(*iris)


@pytest.mark.parametrize("as_given", [np.asarray, np.ndarray.tolist], ids=["array", "list"])
def test_several_labels_are_referred_to_fit(as_given):
    labels = np.eye(3, dtype=int)[np.arange(12) % 3]
    with pytest.raises(ValueError, match=r"y should be a 1d array.*shape \(12, 3\).*likelihood=Bernoulli\(3\)"):
        FlatBayesClassifier().fit(np.zeros((12, 2)), as_given(labels))


def test_labels_of_several_types_are_refused():
    """Their order was asked for, which they have none of."""
    labels = np.array([0, "a"] * 10, dtype=object)
    with pytest.raises(ValueError, match="texts, and others are not, such as 0"):
        FlatBayesClassifier(**SMALL).fit(np.arange(40.0).reshape(20, 2), labels)
