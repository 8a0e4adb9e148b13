"""A method with its own training configuration, shared by its plain and flat run."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes.core.spec import to_spec
from flatbayes.data import Digits
from flatbayes.experiments import Comparison, Method
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SGLD, SGVB
from flatbayes.training import CollectionConfig, Cosine, OptimizationConfig, TrainingConfig

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.005}}
OWN = Method(SGVB(temperature=0.1), SAM(rho=0.5), {"optimizer": ADAM, "schedule": Cosine(), "epochs": 4})
MIXED = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posteriors=(MAP(), OWN, SGLD()),
    flatness=SAM(rho=0.1),
    config=TrainingConfig(
        epochs=2, batch_size=20, collection=CollectionConfig(start_fraction=0.0), num_validations=1
    ),
    num_seeds=1,
    num_draws=2,
)


def test_only_the_overrides_differ_from_the_common_configuration():
    common = TrainingConfig(epochs=9, optimization=OptimizationConfig(clip_norm=1.0))
    own = OWN.apply_overrides(common)
    assert (own.epochs, own.optimization.clip_norm, own.schedule) == (4, 1.0, Cosine())
    assert own.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.005
    assert Method(MAP()).apply_overrides(common) == common


def test_plain_and_flat_runs_have_the_overrides_of_their_method(tmp_path):
    tasks = MIXED.list_runs()
    assert [task.config.epochs for task in tasks] == [2, 2, 4, 4, 2, 2]
    assert [task.flatness for task in tasks] == [
        *(Plain(), SAM(rho=0.1)),
        *(Plain(), SAM(rho=0.5)),
        *(Plain(), SAM(rho=0.1)),
    ]
    MIXED.claim_folder(tmp_path, overwrite=False)
    results = MIXED.run(tmp_path, jobs=1)
    assert not results.failures
    pairs = {(row.posterior, row.flatness) for row in results.rows}
    assert pairs == {("MAP", "SAM(rho=0.1)"), ("SGVB(temperature=0.1)", "SAM(rho=0.5)"), ("SGLD", "SAM(rho=0.1)")}


def test_a_method_has_a_spec_and_a_name():
    assert to_spec(OWN)["init_args"]["config_overrides"]["optimizer"] == ADAM
    named = replace(OWN, name="variational")
    assert named.label == "variational"
    assert replace(MIXED, posteriors=(OWN, named)).list_runs()[2].name == "variational Plain seed 0"


def test_the_setting_shows_overrides_in_every_form():
    collection = {"start_fraction": 0.5}
    overrides = {"schedule": Cosine(), "epochs": 7, "collection": collection, "optimization.clip_norm": 1.0}
    assert Method(MAP(), config_overrides=overrides).setting == (
        "MAP, schedule=Cosine, epochs=7, collection={'start_fraction': 0.5}, optimization.clip_norm=1.0"
    )


def test_bad_input():
    with pytest.raises(ValueError, match="TrainingConfig has no option epoch; it has batch_size"):
        Method(MAP(), config_overrides={"epoch": 3})
    with pytest.raises(ValueError, match="MAP is compared with its plain run"):
        Method(MAP(), Plain())
    with pytest.raises(ValueError, match="Several methods are called MAP: give each a `name`"):
        replace(MIXED, posteriors=(MAP(), Method(MAP(), SAM())))
