"""Posteriors that share a training end in the same numbers, bit for bit, as with a training of their own."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes.data import Augment, DataSplits, Split
from flatbayes.posteriors import MAP, SGHMC, SGLD, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import (
    CollectionConfig,
    Cosine,
    TrainingConfig,
    fit,
)
from flatbayes.training.sharing import fit_together
from support import FLATNESSES, batch, explain_refusal, named

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
CONFIG = TrainingConfig(
    epochs=3,
    batch_size=12,
    optimizer=SGD,
    schedule=Cosine(),
    num_validations=2,
    collection=CollectionConfig(start_fraction=0.3, num_norm_batches=2),
)
EARLY = replace(CONFIG, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2, num_norm_batches=3))
CHAIN = {"optimizer": partial(torch.optim.SGD, lr=0.01), "collection": CollectionConfig(start_fraction=0.7)}
UNDECAYED = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}
GROUPS = {
    "weight decay": [
        (MAP(), CONFIG),
        (SWAG(rank=3), CONFIG),
        (SWAG(rank=0, scale=1.0), EARLY),
        (SWAG(rank=2, params=["*.bias"], storage="cpu"), CONFIG),
        (MCDropout(), EARLY),
        (Laplace(tune="evidence", temperature=0.5), CONFIG),
        (Laplace("diag", "sampled"), CONFIG),
        (Ensemble(size=2), CONFIG),
        (Ensemble(SWAG(rank=2), size=3), EARLY),
    ],
    "prior": [
        (Laplace("last_layer", prior_precision=4.0, temperature=0.5), replace(CONFIG, **UNDECAYED)),
        (SWAG(rank=2, prior_precision=2.0), replace(EARLY, **UNDECAYED)),
        (MAP(prior_precision=2.0), replace(CONFIG, **UNDECAYED)),
    ],
    "langevin": [
        (SGLD(max_snapshots=2), replace(CONFIG, **CHAIN)),
        (SGLD(), replace(CONFIG, **{**CHAIN, "collection": CollectionConfig(start_fraction=0.8)})),
    ],
    "hamiltonian": [
        (SGHMC(max_snapshots=2, storage="cpu"), replace(CONFIG, **CHAIN)),
        (Ensemble(SGHMC(), size=2), replace(CONFIG, **CHAIN)),
    ],
}


def make_network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(108, 8),
        nn.BatchNorm1d(8, momentum=None),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 3),
    )


def make_splits():
    train, held_out = (Split(inputs=inputs, targets=targets) for inputs, targets in (batch(0, 40), batch(1, 20)))
    names = ("a", "b", "c")
    return DataSplits(
        train=train,
        val=held_out,
        test=held_out,
        class_names=names,
        feature_names=(),
        augment=Augment(flip=True, pad=1),
    )


DATA = make_splits()


def assert_same(fitted, other):
    """Everything that the fits end in is equal: weights, buffers, statistics, inputs for BatchNorm, predictions."""
    assert list_facts(fitted) == list_facts(other)
    torch.testing.assert_close(list_tensors(fitted), list_tensors(other), rtol=0, atol=0, equal_nan=True)


def list_tensors(fitted):
    states = [({**s.model.state_dict()}, dict(s.statistics)) for s in fitted.states]
    return states, list(fitted.statistics_inputs), fitted.predict(DATA.test.inputs, num_draws=4, seed=3).log_probs


def list_facts(fitted):
    states = [(s.updated_buffers, s.optimizer, s.num_data, s.model.training) for s in fitted.states]
    return states, fitted.info["cost"]["gradients"], fitted.info["training"]


def fit_alone(posterior, config, flat, **options):
    return fit(make_network, DATA, posterior, flat, config, seed=1, show_progress=False, **options)


def fit_group(methods, flat, **options):
    return fit_together(make_network, DATA, methods, flat, seed=1, **options)


CASES = [
    pytest.param(name, flat, marks=[] if k == j % len(FLATNESSES) else [pytest.mark.slow], id=f"{name}-{label}")
    for j, name in enumerate(GROUPS)
    for k, (flat, label) in enumerate(zip(FLATNESSES, named(FLATNESSES), strict=True))
]


@pytest.mark.parametrize(("name", "flat"), CASES)
def test_a_shared_training_ends_as_one_for_each_posterior(name, flat):
    methods = [method for method in GROUPS[name] if explain_refusal(method[0], flat, method[1]) is None]
    turn = FLATNESSES.index(flat) % max(1, len(methods))
    methods = methods[turn:] + methods[:turn]  # each takes the steps in turn
    if not methods:
        pytest.skip("the flatness is refused")
    caller = torch.get_rng_state()
    outcomes = fit_group(methods, flat)
    assert torch.equal(torch.get_rng_state(), caller)
    for (posterior, config), shared in zip(methods, outcomes, strict=True):
        assert shared.error is None, shared.error
        assert_same(shared.fitted, fit_alone(posterior, config, flat))
    models = [state.model for shared in outcomes for state in shared.fitted.states]
    assert len(set(map(id, models))) == len(models)
