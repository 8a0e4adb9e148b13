"""Names of version 0.1: every table leads to a name that exists, and every old name gets an answer."""

import importlib
import inspect

import pytest

import flatbayes
from flatbayes.core import renames
from flatbayes.core.renames import explain_name, explain_option, translate_path, translate_spec
from flatbayes.core.spec import import_object, instantiate, short_name
from flatbayes.flatness import LESAM, SAM, Periodic, RandomPerturbation


@pytest.mark.parametrize(
    ("package", "new"),
    [(package, new) for package, names in renames.RENAMED_OBJECTS.items() for new in names.values()],
)
def test_new_names_exist_and_old_ones_do_not(package, new):
    module = importlib.import_module(package)
    assert new in module.__all__
    old_names = [old for old, name in renames.RENAMED_OBJECTS[package].items() if name == new]
    assert not set(old_names) & set(module.__all__)


@pytest.mark.parametrize("path", list(renames.RENAMED_ARGUMENTS))
def test_new_arguments_exist_and_old_ones_do_not(path):
    parameters = inspect.signature(import_object(path)).parameters
    for old, new in renames.RENAMED_ARGUMENTS[path].items():
        group, _, name = new.rpartition(".")
        if group:  # an option of a group of options
            assert name in inspect.signature(parameters[group].annotation).parameters
        else:
            assert new in parameters
        assert old not in parameters or old == group


def test_an_old_spec_makes_the_new_object():
    inner = {"class_path": "flatbayes.flatness.SAM", "init_args": {"part": 0.5, "fresh_noise": True}}
    spec = {"class_path": "flatbayes.flatness.Every", "init_args": {"flatness": inner, "steps": 3}}
    expected = Periodic(SAM(ascent_batch_fraction=0.5, resample_noise=True), 3)
    assert instantiate(spec, package="flatbayes.flatness", base_class=flatbayes.Flatness) == expected
    spec = {"class_path": "flatbayes.flatness.LESAM", "init_args": {"loss": 0.1}}
    assert instantiate(spec, package="flatbayes.flatness") == LESAM(loss_budget=0.1)


def test_an_old_path_outside_the_package_is_refused():
    with pytest.raises(ValueError, match="is not part of"):
        instantiate({"class_path": "flatbayes.flatness.Every"}, package="flatbayes.posteriors")


def test_short_names_of_old_specs_are_the_new_ones():
    spec = {"class_path": "flatbayes.flatness.Random", "init_args": {"rho": 0.1, "fresh_noise": False}}
    assert short_name(spec) == short_name(RandomPerturbation(rho=0.1)) == "RandomPerturbation(rho=0.1)"


def test_a_new_argument_has_priority_and_other_names_are_unchanged():
    path, arguments = translate_spec("flatbayes.flatness.SAM", {"part": 0.1, "ascent_batch_fraction": 0.2, "x": 1})
    assert (path, arguments) == ("flatbayes.flatness.SAM", {"ascent_batch_fraction": 0.2, "x": 1})
    assert [translate_path(p) for p in ("torch.optim.SGD", "Random", "flatbayes.flatness.SAM")] == [
        "torch.optim.SGD",
        "Random",
        "flatbayes.flatness.SAM",
    ]
    assert translate_path("flatbayes.Every") == "flatbayes.Periodic"
    assert translate_path("flatbayes.comparison.Task") == "flatbayes.experiments.ExperimentRun"


def test_messages_for_names_and_options():
    assert explain_name("Recipe") == "Recipe was renamed to TrainingConfig in 0.2."
    assert explain_name("flatbayes.flatness.Late") == "Late was renamed to Delayed in 0.2."
    assert "--data torchvision.datasets.MNIST" in explain_name("flatbayes.data.MNIST")
    assert "--data torchvision.datasets.SVHN" in explain_name("SVHN")
    assert explain_name("SAM") is explain_name("nowhere.Thing") is None
    assert explain_option("part", "compare") == "part was renamed to split in 0.2."
    assert explain_option("flatness.part") == "flatness.part was renamed to flatness.ascent_batch_fraction in 0.2."
    assert explain_option("every", path="flatbayes.flatness.LookSAM") == "every was renamed to period in 0.2."
    assert explain_option("rho") is explain_option("posterior.temperature") is None


@pytest.mark.parametrize(("old", "new"), [("Recipe", "TrainingConfig"), ("Course", "TrainingProgress")])
def test_an_import_of_an_old_name_gives_the_new_one(old, new):
    with pytest.raises(ImportError, match=f"{old} was renamed to {new}"):
        exec(f"from flatbayes import {old}")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flatbayes.nothing
