"""Posteriors of folds and their regions: no example is scored by a posterior that has seen it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import MAP, MLP, SWAG, Diabetes, Digits, Plain, TrainingConfig, fit
from flatbayes.calibration import APS, QuantileResidual
from flatbayes.training import CrossConformalPosterior, OptimizationConfig, fit_cross_conformal

CONFIG = TrainingConfig(epochs=3, optimization=OptimizationConfig(clip_norm=1.0))


class TakesNamed(nn.Linear):
    """A network with two named inputs."""

    def forward(self, first, rest):
        return super().forward(torch.cat([first, rest], 1))


@pytest.fixture(scope="module")
def patients():
    return Diabetes().load(seed=0)


def test_intervals_of_numbers_cover(patients, tmp_path):
    cross = fit_cross_conformal(MLP, patients, MAP(), Plain(), CONFIG, num_folds=4, level=0.8, num_draws=1)
    assert sorted(map(len, cross.fold_scores)) == [70, 71, 71, 71]
    assert [member.states[0].num_data for member in cross.members] == [283 - len(s) for s in cross.fold_scores]
    evaluation = cross.evaluate(patients.test)
    assert 0.7 < evaluation.coverage < 0.92
    assert evaluation.mean_size < 300
    text = " ".join(cross.summary().split())
    assert "CV+ with 4 folds and 283 examples" in text
    assert "at least 57" in text  # 1 - .4 - min(1.5 / 71.75, ...)
    again = CrossConformalPosterior.load(cross.save(tmp_path / "folds"))
    assert torch.equal(again.predict(patients.test.inputs).lower, cross.predict(patients.test.inputs).lower)
    assert repr(again) == repr(cross)


def test_scores_are_those_of_the_posterior_without_the_fold(patients, monkeypatch):
    trained = []

    def record(model, data, *arguments, **options):
        trained.append({tuple(row) for row in data.train.inputs.tolist()})
        return fit(model, data, *arguments, **options)

    monkeypatch.setattr("flatbayes.training.cross_conformal.fit", record)
    score = QuantileResidual()
    cross = fit_cross_conformal(MLP, patients, MAP(), Plain(), CONFIG, num_folds=3, num_draws=1, score=score)
    rows = [tuple(row) for row in patients.train.inputs.tolist()]
    assert len(set(rows)) == 283
    times_left_out = torch.zeros(283)
    for member, seen, scores in zip(cross.members, trained, cross.fold_scores, strict=True):
        left_out = torch.tensor([row not in seen for row in rows])
        times_left_out += left_out
        part = patients.train.take(left_out.nonzero().squeeze(1))
        torch.testing.assert_close(score.compute_scores(member.predict(part.inputs, 1), part.targets, 0.9), scores)
    assert (times_left_out == 1).all()


def test_sets_of_classes_cover():
    data = Digits(train_size=200, test_size=200).load(seed=0)
    cross = fit_cross_conformal(
        MLP, data, SWAG(rank=2, scale=0.5), Plain(), TrainingConfig(epochs=4), num_folds=4, score=APS(), num_draws=3
    )
    evaluation = cross.evaluate(data.test)
    assert 0.82 < evaluation.coverage <= 1
    sets = cross.predict(data.test.inputs)
    assert evaluation.mean_size == float(sets.size.double().mean())
    assert "the set of a new example" in cross.guarantee()


def test_it_takes_several_inputs():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    data = {"first": x[:, :1], "rest": x[:, 1:]}, (x[:, 0] > 0).long()
    cross = fit_cross_conformal(TakesNamed(3, 2), data, MAP(), Plain(), {"epochs": 2}, num_folds=2, level=0.8)
    assert cross.evaluate(data).coverage > 0.5


def test_it_takes_names_and_classes(patients):
    def predict(*method):
        cross = fit_cross_conformal(
            MLP, (patients.train.inputs[:30], patients.train.targets[:30] + 0.5), *method, num_folds=2
        )
        return cross.predict(patients.test.inputs[:3]).lower

    config = CONFIG.with_options(epochs=1, collection={"start_fraction": 0.0})
    assert torch.equal(predict("map", "plain", config), predict(MAP(), Plain, config))


@pytest.mark.parametrize("num_folds", [1, 284])
def test_wrong_numbers_of_folds_are_refused(patients, num_folds):
    with pytest.raises(ValueError, match="num_folds lies between 2 and the 283 training examples"):
        fit_cross_conformal(MLP, patients, MAP(), Plain(), CONFIG, num_folds=num_folds)


def test_examples_that_each_fold_would_read_in_another_order_are_refused():
    """Predictions of different examples were averaged, without notice."""
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    cross = fit_cross_conformal(MLP, (x, labels), MAP(), Plain(), CONFIG, num_folds=2, level=0.4, num_draws=1)
    shuffled = DataLoader(TensorDataset(x, labels), 10, shuffle=True)
    for use in (cross.evaluate, cross.predict):
        with pytest.raises(ValueError, match="random order.*shuffle=False"):
            use(shuffled)
        with pytest.raises(ValueError, match="read only once"):
            use(iter([(x, labels)]))
    assert len(cross.predict(DataLoader(TensorDataset(x, labels), 10)).size) == 30
