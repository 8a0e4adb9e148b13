"""Inputs of another shape than in training are refused by that shape, and a missing batch axis is named."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import Digits
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.prediction import FittedPosterior, evaluate, evaluate_ood
from flatbayes.training import CollectionConfig, TrainingConfig, fit

CONFIG = TrainingConfig(epochs=2, batch_size=16, collection=CollectionConfig(start_fraction=0.0))
X, Y = torch.randn(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
LOADER = DataLoader(TensorDataset(X, Y), 16)


def make_network():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.fixture(scope="module", params=[MAP(), SWAG(rank=2), Ensemble(MAP(), 2)], ids=repr)
def fitted(request):
    return fit(make_network, LOADER, request.param, SAM(), CONFIG, likelihood=Categorical(3))


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 6), (4, 7, 1)])
@pytest.mark.parametrize("vectorized", [None, False])
def test_another_shape_is_named_with_that_of_training(fitted, tmp_path, shape, vectorized):
    loaded = FittedPosterior.load(fitted.save(tmp_path), make_network)
    for posterior in (fitted, loaded):
        with pytest.raises(ValueError, match=r"trained on inputs of shape \(n, 6\), and got the shape \(4, "):
            posterior.predict(torch.zeros(shape), 2, vectorized=vectorized)
    with pytest.raises(ValueError, match=r"trained on inputs of shape \(n, 6\)"):
        evaluate(fitted, torch.zeros(shape), Y[:4], 2)


@pytest.mark.parametrize("pair", [(X, Y), [X.numpy(), Y.numpy()]], ids=["tensors", "arrays"])
def test_inputs_with_targets_are_refused_where_inputs_alone_are_taken(fitted, pair):
    """They would be read as two batches, or fail to become an array."""
    uses = [lambda: fitted.predict(pair, 2), lambda: evaluate_ood(fitted, pair, X, 2)]
    for use in uses:
        with pytest.raises(TypeError, match=r"inputs alone.*shapes \(48, 6\) and \(48,\)"):
            use()


@pytest.mark.parametrize("inputs", [X[0], torch.tensor(1.0)], ids=["example", "number"])
def test_a_missing_batch_axis_is_named(fitted, inputs):
    with pytest.raises(ValueError, match=r"Inputs need a batch axis.* pass inputs\[None\]"):
        fitted.predict(inputs, 2)


def test_splits_and_their_images():
    data = Digits(train_size=40).load(0)
    fitted = fit(partial(MLP, hidden=(4,)), data, MAP(), SAM(), CONFIG)
    with pytest.raises(ValueError, match=r"Inputs need a batch axis, got the shape \(1, 8, 8\)"):
        fitted.predict(data.test.inputs[0])
    with pytest.raises(ValueError, match=r"shape \(n, 1, 8, 8\), and got the shape \(4, 1, 12, 12\)"):
        fitted.predict(torch.zeros(4, 1, 12, 12, dtype=torch.uint8))


def test_a_network_that_does_not_fit_the_data_is_refused_before_training():
    with pytest.raises(ValueError, match=r"A trial on a few examples of shape \(6,\) before training"):
        fit(nn.Linear(5, 3), LOADER, MAP(), SAM(), CONFIG, likelihood=Categorical(3))
    with pytest.raises(ValueError, match=r"outputs of shape \(\d+, 10\), but there are 3 classes"):
        fit(nn.Linear(6, 10), LOADER, MAP(), SAM(), CONFIG, likelihood=Categorical(3))


def test_a_network_that_takes_other_shapes_predicts():
    network = nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    fitted = fit(
        network, DataLoader(TensorDataset(X[:, None], Y), 16), MAP(), SAM(), CONFIG, likelihood=Categorical(3)
    )
    assert fitted.predict(torch.zeros(5, 1, 9)).mean.shape == (5, 3)
