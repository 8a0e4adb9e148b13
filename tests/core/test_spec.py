"""Objects as plain data, and the paths that may be imported from it."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from flatbayes import MAP, TrainingConfig, compare
from flatbayes.core.spec import import_object, instantiate, short_name, to_spec
from flatbayes.flatness import SAM, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG, Ensemble


@dataclass(frozen=True)
class Own:
    size: int = 3


def test_round_trips():
    for obj in (SAM(rho=0.3), Ensemble(SWAG(rank=5), size=2), Own(4)):
        assert instantiate(to_spec(obj)) == obj
    bound = instantiate(to_spec(partial(torch.optim.SGD, lr=0.5)), bind=True)
    assert bound.func is torch.optim.SGD
    assert bound.keywords == {"lr": 0.5}


def test_public_paths():
    assert to_spec(SAM())["class_path"] == "flatbayes.flatness.SAM"
    assert to_spec(partial(torch.optim.AdamW))["class_path"] == "torch.optim.AdamW"


def test_short_names_show_what_differs_from_the_defaults():
    assert short_name(SWAG()) == "SWAG"
    assert short_name(SWAG(rank=0)) == "SWAG(rank=0)"
    assert short_name(Plain()) == "Plain"
    assert short_name(Ensemble(SWAG(scale=0.1), size=3)) == "Ensemble(member=SWAG(scale=0.1), size=3)"
    assert short_name(partial(ConvNet, width=8)) == "ConvNet(width=8)"
    assert short_name(partial(torch.optim.SGD, lr=0.5)) == "SGD(lr=0.5)"


def test_objects_without_an_importable_name_are_refused():
    for obj in (lambda: None, object()):
        with pytest.raises(TypeError, match="cannot be written down as data"):
            to_spec(obj)


def test_a_field_without_an_importable_name_is_named():
    message = (
        r"^The optimizer of the TrainingConfig, <function .*cannot be written.*partial\(torch.optim.AdamW, lr=0.001\)"
    )
    config = TrainingConfig(optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with pytest.raises(TypeError, match=message):
        to_spec(config)
    with pytest.raises(TypeError, match=message):
        compare("MLP", (torch.rand(40, 3), torch.arange(40) % 2), [MAP()], config=config)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "flatbayes.reporting.write_report",
        "flatbayes.posteriors.swag.math",
        "flatbayes.posteriorsx.Y",
    ],
)
def test_nothing_outside_the_package_is_imported(path):
    with pytest.raises(ValueError, match=r"is not part of|does not lead to"):
        instantiate({"class_path": path, "init_args": {}}, package="flatbayes.posteriors")


def test_a_nested_path_outside_the_package_is_refused():
    spec = {
        "class_path": "flatbayes.posteriors.Ensemble",
        "init_args": {"member": {"class_path": "os.getcwd"}},
    }
    with pytest.raises(ValueError, match=r"os\.getcwd"):
        instantiate(spec, package="flatbayes.posteriors")


@pytest.mark.parametrize("path", ["nowhere.Thing", "flatbayes.posteriors.Nothing", "plain", "torch.pi", ""])
def test_paths_that_cannot_be_imported_are_refused(path):
    with pytest.raises(ValueError, match=r"does not lead to|is not a class"):
        import_object(path)


def test_arguments_of_a_description_are_a_mapping():
    with pytest.raises(ValueError, match=r"init_args is a mapping of arguments by name; got \[1, 2\]"):
        instantiate({"class_path": "flatbayes.MAP", "init_args": [1, 2]})
