from functools import partial

import numpy as np
import pytest
import torch

from flatbayes.data.stratified_split import hold_out_validation
from flatbayes.estimators import FlatBayesClassifier
from flatbayes.estimators.base import (
    get_nested_params,
    make_data_splits,
    replace_nested_params,
)
from flatbayes.flatness import SAM, Periodic, Plain
from flatbayes.posteriors import SWAG, Ensemble
from flatbayes.training import TrainingConfig


def test_fields_of_fields_have_nested_names():
    params = get_nested_params("flatness", Periodic(SAM(rho=0.3), period=5))
    assert params["flatness__period"] == 5
    assert params["flatness__flatness"] == SAM(rho=0.3)
    assert params["flatness__flatness__rho"] == 0.3


@pytest.mark.parametrize("value", [None, 3, SAM, partial(SAM, rho=1.0), (1, 2)])
def test_other_values_have_no_parameters(value):
    assert get_nested_params("a", value) == {}


def test_a_field_is_replaced_before_its_fields():
    before = Ensemble(size=2)
    changed = replace_nested_params("p", before, {"member__rank": 3, "member": SWAG(), "size": 4})
    assert changed == Ensemble(SWAG(rank=3), size=4)
    assert before == Ensemble(size=2)


def test_invalid_values_and_names_raise():
    with pytest.raises(ValueError, match="rho"):
        replace_nested_params("f", SAM(), {"rho": -1.0})
    with pytest.raises(ValueError, match=r"p is None, which has no parameter 'x'"):
        replace_nested_params("p", None, {"x": 1})
    with pytest.raises(ValueError, match=r"p__member is MAP.*'rank'"):
        replace_nested_params("p", Ensemble(size=2), {"member__rank": 1})


def test_option_groups_have_nested_names():
    config = TrainingConfig(epochs=3)
    assert get_nested_params("config", config)["config__optimization__clip_norm"] == "auto"
    changed = replace_nested_params("config", config, {"optimization__clip_norm": 2.0, "epochs": 4})
    assert (changed.epochs, changed.optimization.clip_norm) == (4, 2.0)


def test_rows_are_held_out_where_the_budget_is_automatic():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(100, 4)), np.array(["a"] * 59 + ["b"] * 40 + ["c"])
    targets = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    data = make_data_splits(torch.from_numpy(X), targets, None, class_names=("a", "b", "c"))
    held_out = hold_out_validation(data, 0.2, seed=7)
    assert (len(held_out.train), len(held_out.val)) == (80, 20)
    assert torch.cat([held_out.train.inputs, held_out.val.inputs]).unique(dim=0).shape == (100, 4)
    assert held_out.train.targets.unique().tolist() == [0, 1, 2]
    assert hold_out_validation(data, 0.09, seed=7) is data
    labels = generator.permutation(y[:99])  # that nothing can be learnt about
    quick = {"hidden": (16,), "random_state": 0}
    stopped = FlatBayesClassifier(flatness=Plain(), **quick).fit(X[:99], labels)
    training = stopped.posterior_.info["training"]
    assert training["last_epochs"] == [stopped.n_iter_]
    assert stopped.n_iter_ < training["epochs"] == 1500  # of two steps
    assert "scale" in training["draw_options"]
    for options in ({"epochs": 6}, {"config": TrainingConfig(epochs=6)}):
        whole = FlatBayesClassifier(**quick, **options).fit(X[:99], labels)
        assert whole.posterior_.states[0].num_data == 99
    assert stopped.posterior_.states[0].num_data == 84
    with pytest.raises(ValueError, match="validation_fraction"):
        FlatBayesClassifier(validation_fraction=1.0).fit(X[:99], labels)


@pytest.mark.parametrize("config", [None, {"epochs": 15}])
def test_fields_of_the_configuration_are_parameters_where_it_is_not_written_out(config):
    estimator = FlatBayesClassifier(config=config, batch_size=16)
    assert estimator.get_params()["config__epochs"] == (None if config is None else 15)
    estimator.set_params(config__epochs=3, config__optimization__clip_norm=1.0)
    assert (estimator.config.epochs, estimator.config.optimization.clip_norm) == (3, 1.0)
    assert estimator.config.batch_size == (16 if config is None else 64)
