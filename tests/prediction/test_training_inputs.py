"""Statistics of training inputs against closed forms, and in artefacts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes import MAP, SWAG, ConvNet, FittedPosterior, TrainingConfig, fit
from flatbayes.flatness import Plain
from flatbayes.prediction.training_inputs import (
    DISTANCE_MARGIN,
    MAX_HASHES,
    TrainingInputs,
    fit_components,
    hash_rows,
    measure_mahalanobis,
)


def keep(values):
    return values


def table(rows=400, size=3, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distance_with_all_components_is_that_of_the_covariance():
    values = table(200) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]], dtype=torch.float64)
    mean, components, variances, residual = fit_components(values)
    assert components.shape == (3, 3)
    others = table(50, seed=1)
    centred = others - values.mean(0)
    expected = (centred @ values.T.cov().inverse() * centred).sum(1).sqrt()
    torch.testing.assert_close(measure_mahalanobis(others, mean, components, variances, residual), expected)


def test_distance_with_some_components_has_one_variance_for_the_others():
    values = table(40, 5)  # two components for 40 rows
    mean, components, variances, residual = fit_components(values)
    assert components.shape == (2, 5)
    eigenvalues, vectors = torch.linalg.eigh(values.T.cov())
    torch.testing.assert_close(residual, eigenvalues[:3].mean())
    covariance = vectors @ torch.diag(torch.cat([residual.expand(3), eigenvalues[3:]])) @ vectors.T
    centred = table(7, 5, seed=1) - mean
    expected = (centred @ covariance.inverse() * centred).sum(1).sqrt()
    torch.testing.assert_close(measure_mahalanobis(centred + mean, mean, components, variances, residual), expected)


def test_normal_inputs_are_as_far_as_training_inputs_and_others_are_outside():
    inputs = table()
    statistics = TrainingInputs.fit(inputs, keep, inputs)
    new = statistics.measure(table(seed=1), keep)
    assert float(new.is_far.double().mean()) == pytest.approx(0.05, abs=0.04)
    assert not new.is_outside.any()
    measured = statistics.measure(inputs[1::2], keep)
    assert float(measured.distance.max()) == pytest.approx(1 / DISTANCE_MARGIN, rel=1e-5)
    far = statistics.measure(torch.full((1, 3), 20.0), keep)
    assert far.is_outside.item()
    assert far.outside_fraction.item() == 1
    beyond = inputs[:1].clone()
    beyond[0, 1] = inputs[:, 1].max() + 0.6 * (inputs[:, 1].max() - inputs[:, 1].min())
    assert statistics.measure(beyond, keep).outside_fraction.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("rows", [200, 5000])
def test_duplicates_are_counted_or_estimated(rows):
    inputs = table(rows, 2)
    statistics = TrainingInputs.fit(inputs, keep, inputs[:100])
    assert len(statistics.hashes) == min(rows, MAX_HASHES)
    mixed = torch.cat([inputs[::2], table(rows // 2, 2, seed=1)])
    share, count = statistics.estimate_duplicates(mixed)
    assert share == pytest.approx(0.5, abs=0 if rows <= MAX_HASHES else 4 * math.sqrt(0.25 / count))
    assert statistics.estimate_duplicates(table(rows, 2, seed=2))[0] == 0
    assert statistics.repeated_fraction == 0
    repeated = torch.cat([inputs[:100], inputs[:100]])
    assert TrainingInputs.fit(repeated, keep, inputs[:100]).repeated_fraction == 0.5


def test_hashes_are_those_of_values():
    inputs = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0 + 1e-6]])
    hashes = hash_rows(inputs)
    assert hashes[0] == hashes[1]
    assert len(hashes.unique()) == 3
    assert torch.equal(hash_rows(inputs.double()), hashes)
    assert len(hash_rows(torch.arange(100_000)[:, None]).unique()) == 100_000
    assert float((hash_rows(torch.arange(10_000)[:, None]) > 0).double().mean()) == pytest.approx(0.5, abs=0.03)


def images(posterior=MAP(), model=ConvNet):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3
    config = TrainingConfig(epochs=2, batch_size=20, collection={"start_fraction": 0.0})
    return fit(model, (inputs, targets), posterior, Plain(), config, show_progress=False), inputs


def test_artefacts_keep_them_unless_training_inputs_must_not_be_passed_on(tmp_path):
    fitted, inputs = images(SWAG(rank=2))
    folder = fitted.save(tmp_path / "a")
    again = FittedPosterior.load(folder)
    expected = fitted.training_inputs.to_tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.training_inputs.to_tensors().items())
    distance, same = fitted.measure_input_distance(inputs), again.measure_input_distance(inputs)
    torch.testing.assert_close(same.distance, distance.distance)
    torch.testing.assert_close(fitted.measure_input_distance(inputs.numpy()).distance, distance.distance)
    assert sum(tensor.nbytes for tensor in expected.values()) < 20_000
    fitted.save(folder, with_training_inputs=False)
    private = FittedPosterior.load(folder)
    assert private.training_inputs is None
    assert private.measure_input_distance(inputs) is None


def test_noise_is_far_from_images_in_feature_space():
    fitted, inputs = images()
    assert fitted.training_inputs.mean.ndim == 1
    assert not fitted.measure_input_distance(inputs).is_outside.any()
    assert fitted.measure_input_distance(100 * inputs).is_outside.all()


class NoLinear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 3, 8), nn.Flatten())


def test_a_network_without_linear_layers_has_no_statistics_and_a_loader_neither():
    fitted, inputs = images(model=NoLinear)
    assert fitted.training_inputs is None
    loader = [(inputs[:20].flatten(1), torch.arange(20) % 3)] * 3
    fitted = fit(nn.Linear(64, 3), loader, MAP(), Plain(), TrainingConfig(epochs=1), show_progress=False)
    assert fitted.training_inputs is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mean", torch.zeros(4)),
        ("distances", torch.zeros(3)),
        ("hashes", torch.zeros(3)),
        ("highest", torch.zeros(3, 3)),
        ("more", torch.zeros(3)),
    ],
)
def test_damaged_statistics_are_refused(name, tensor):
    inputs = table()
    tensors = TrainingInputs.fit(inputs, keep, inputs).to_tensors()
    TrainingInputs.from_tensors(tensors)
    with pytest.raises(ValueError, match="statistics of training inputs"):
        TrainingInputs.from_tensors({**tensors, name: tensor})


def test_few_or_infinite_rows_have_no_statistics():
    assert TrainingInputs.fit(table(9), keep, table(9)) is None
    assert TrainingInputs.fit(table(), lambda values: values / 0, table()) is None
    assert (
        replace(TrainingInputs.fit(table(), keep, table()), hashes=torch.zeros(0).long()).estimate_duplicates(table())
        is None
    )
