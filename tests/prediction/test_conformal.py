"""Conformal prediction around fitted posteriors."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes import MAP, MLP, SWAG, Diabetes, Digits, Plain, TrainingConfig, conformalize, fit
from flatbayes.calibration import APS, QuantileResidual
from flatbayes.prediction import ConformalPosterior
from flatbayes.training import OptimizationConfig


@pytest.fixture(scope="module")
def digits():
    data = Digits(train_size=200, val_size=150, test_size=300).load(seed=0)
    return data, fit(MLP, data, SWAG(rank=2), Plain(), TrainingConfig(epochs=3, batch_size=32))


@pytest.fixture(scope="module")
def patients():
    data = Diabetes(val_size=100).load(seed=0)
    config = TrainingConfig(epochs=3, optimization=OptimizationConfig(clip_norm=1.0))
    return data, fit(MLP, data, MAP(), Plain(), config)


@pytest.mark.parametrize("score", [None, APS()])
def test_sets_of_a_posterior_are_those_of_its_predictions(digits, score, tmp_path):
    data, fitted = digits
    conformal = conformalize(fitted, data.val, num_draws=4, score=score, level=0.8, seed=3)
    sets = conformal.predict(data.test.inputs)
    predictive = fitted.predict(data.test.inputs, 4, seed=3)
    assert torch.equal(sets.members, conformal.predictor.predict(predictive).members)
    evaluation = conformal.evaluate(data.test)
    assert evaluation.coverage == sets.contains(data.test.targets).double().mean()
    assert evaluation.estimates[0].is_as_guaranteed
    loaded = ConformalPosterior.load(conformal.save(tmp_path / "conformal.json"), fitted)
    assert torch.equal(loaded.predict(data.test.inputs).members, sets.members)
    assert "Guarantee: the set of a new example" in conformal.summary()


def test_evaluations_and_summaries_have_the_names_of_the_classes():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    labels = ["north" if value > 0 else "south" for value in x[:, 0].tolist()]
    fitted = fit(MLP, (x, labels), MAP(), Plain(), TrainingConfig(epochs=2))
    conformal = conformalize(fitted, x, labels, level=0.6, groups="class")
    assert [estimate.name for estimate in conformal.evaluate(x, labels).estimates] == ["all", "north", "south"]
    assert "north" in conformal.summary()


def test_examples_without_a_label_and_loaders(digits):
    data, fitted = digits
    labels, groups = data.val.targets.clone(), ["even" if row % 2 == 0 else "odd" for row in range(150)]
    labels[::3] = -100
    partly = conformalize(fitted, data.val.inputs, labels, 4, groups=groups)
    assert {name: t.num_examples for name, t in partly.predictor.thresholds.items()} == {"odd": 50, "even": 50}
    kept = labels >= 0
    kept_groups = [name for name, keep in zip(groups, kept.tolist(), strict=True) if keep]
    same = conformalize(fitted, (data.val.inputs[kept], labels[kept]), num_draws=4, groups=kept_groups)
    assert same.predictor == partly.predictor
    batches = list(zip(data.val.inputs.split(40), labels.split(40), strict=True))
    assert conformalize(fitted, batches, num_draws=4, groups=groups).predictor == partly.predictor
    assert partly.evaluate(data.val.inputs, labels, groups).estimates[0].num_examples == 100


@pytest.mark.parametrize("score", [None, QuantileResidual()])
def test_intervals_of_a_regression(patients, score):
    data, fitted = patients
    conformal = conformalize(fitted, data.val, score=score)
    evaluation, intervals = conformal.evaluate(data.test), conformal.predict(data.test.inputs)
    assert evaluation.estimates[0].is_as_guaranteed
    assert evaluation.mean_size == pytest.approx(float(intervals.size.double().mean()))
    assert len(intervals.to_dict()["conformal_lower"]) == len(data.test.targets)


def test_a_file_that_holds_something_else_is_refused(digits, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="does not hold thresholds written by ConformalPosterior.save"):
        ConformalPosterior.load(tmp_path / "x.json", digits[1])


def test_groups_of_a_loader_in_random_order_are_refused():
    """Examples got the groups of others, without notice."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    dataset, groups = TensorDataset(x, (x[:, 0] > 0).long()), ["a", "b"] * 30
    fitted = fit(MLP, dataset, MAP(), Plain(), TrainingConfig(epochs=2))
    ordered, shuffled = (DataLoader(dataset, 20, shuffle=shuffle) for shuffle in (False, True))
    conformal = conformalize(fitted, ordered, level=0.6, groups=groups)
    batches = DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 20, drop_last=False))
    for use in (
        lambda: conformalize(fitted, shuffled, level=0.6, groups=groups),
        lambda: conformal.evaluate(shuffled, groups=groups),
        lambda: conformal.evaluate(batches, groups=groups),
        lambda: conformal.predict(shuffled, groups),
    ):
        with pytest.raises(ValueError, match="random order, so it is unknown which group"):
            use()
    assert (
        conformalize(fitted, shuffled, level=0.6, groups="class").evaluate(shuffled).estimates[0].num_examples == 60
    )
