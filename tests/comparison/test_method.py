"""A method trained in its own way: both twins, and nobody else."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes.comparison import Comparison, Method
from flatbayes.core.spec import to_spec
from flatbayes.data import Digits
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import SGLD, SGVB, Point
from flatbayes.training import Cosine, Recipe

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.005}}
OWN = Method(SGVB(temperature=0.1), SAM(rho=0.5), {"optimizer": ADAM, "schedule": Cosine(), "epochs": 4})
MIXED = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posteriors=(Point(), OWN, SGLD()),
    flatness=SAM(rho=0.1),
    recipe=Recipe(epochs=2, batch_size=20, collect_from=0.0, validations=1),
    seeds=1,
    num_draws=2,
)


def test_only_what_it_names_differs_from_the_common_recipe():
    common = Recipe(epochs=9, clip_norm=1.0)
    own = OWN.trained_by(common)
    assert (own.epochs, own.clip_norm, own.schedule) == (4, 1.0, Cosine())
    assert own.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.005
    assert Method(Point()).trained_by(common) == common


def test_both_twins_are_trained_its_way_and_all_stand_side_by_side(tmp_path):
    tasks = MIXED.tasks()
    assert [task.recipe.epochs for task in tasks] == [2, 2, 4, 4, 2, 2]
    assert [task.flatness for task in tasks] == [
        *(Plain(), SAM(rho=0.1)),
        *(Plain(), SAM(rho=0.5)),
        *(Plain(), SAM(rho=0.1)),
    ]
    MIXED.claim(tmp_path, overwrite=False)
    results = MIXED.results(tmp_path, jobs=1)
    assert not results["failures"]
    pairs = {(row["posterior"], row["flatness"]) for row in results["summary"]}
    assert pairs == {("Point", "SAM(rho=0.1)"), ("SGVB(temperature=0.1)", "SAM(rho=0.5)"), ("SGLD", "SAM(rho=0.1)")}


def test_can_be_written_down_and_named():
    assert to_spec(OWN)["init_args"]["recipe"]["optimizer"] == ADAM
    named = replace(OWN, name="variational")
    assert named.label == "variational"
    assert replace(MIXED, posteriors=(OWN, named)).tasks()[2].name == "variational Plain seed 0"


def test_bad_input():
    with pytest.raises(ValueError, match="A recipe has no epoch; it has accelerator"):
        Method(Point(), recipe={"epoch": 3})
    with pytest.raises(ValueError, match="Point is compared with its plain twin"):
        Method(Point(), Plain())
    with pytest.raises(ValueError, match="Several methods are called Point: give each a `name`"):
        replace(MIXED, posteriors=(Point(), Method(Point(), SAM())))
