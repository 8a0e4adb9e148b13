"""Networks of other libraries by dotted path, with arguments and with a new last layer."""

import functools
import json
import re
import shlex
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from flatbayes.cli import main
from flatbayes.prediction import FittedPosterior

TINY = ["--data", "digits", "--data.train_size", "60", "--epochs", "2", "--batch_size", "20",
        "--collection.start_fraction", "0", "--posterior", "map", "--num_draws", "2"]  # fmt: skip
TRAINED = 0.125


class Net(nn.Module):
    def __init__(self, width: int = 4, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x))


def legacy(build):
    @functools.wraps(build)
    def inner(*args, **kwargs):
        return build(*args, **kwargs)

    return inner


@legacy
def net161(*, weights: str | None = None, progress: bool = True, **kwargs: int) -> Net:
    """As torchvision builds its networks: weights only for the classes that they were trained on."""
    if weights is not None and kwargs.get("num_classes", 1000) != 1000:
        raise ValueError("expected 1000 classes")
    model = Net(width=6, **kwargs)
    if weights is not None:
        nn.init.constant_(model.features[1].weight, TRAINED)
    return model


def unannotated(width=3):
    return Net(width)


def normalized(*, is_trained: bool = False, num_classes: int = 10) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.Linear(6, num_classes))
    if is_trained:
        nn.init.normal_(network[2].weight)
    return network


class Untyped(Net):
    def __init__(self, width, num_classes, *, norm):
        super().__init__(width, num_classes)
        assert isinstance(norm, list)


def untyped_function(width, num_classes):
    return Net(width, num_classes)


@pytest.fixture(autouse=True)
def _vision(tmp_path, monkeypatch):
    module = ModuleType("some_vision")
    for thing in (Net, net161, normalized, unannotated, Untyped, untyped_function):
        monkeypatch.setattr(thing, "__module__", "some_vision")
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "some_vision", module)
    monkeypatch.chdir(tmp_path)


def test_new_head_keeps_the_other_weights(tmp_path, capsys):
    still = ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "1e-30"]
    model = ["--model", "some_vision.net161", "--model.weights", "V1", "--new_head"]
    assert main(["fit", *TINY, *model, *still, "--out", "run"]) == 0
    spec = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["init_args"]
    assert spec == {"path": "some_vision.net161", "arguments": {"weights": "V1", "progress": True}}
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 2
    assert "some_vision.net161, which is not part of flatbayes" in capsys.readouterr().err
    assert main(["evaluate", "run", "--model", "some_vision.Net"]) == 2
    assert "The model of this run is some_vision.net161, got --model some_vision.Net" in capsys.readouterr().err
    assert main(["evaluate", "run", "--model", "some_vision.net161"]) == 0
    fitted = FittedPosterior.load("run", Net(6, 10))
    assert (fitted.states[0].model.features[1].weight == TRAINED).all()
    few = ["--num_draws", "20", "--num_trial_draws", "2", "--num_test_draws", "2"]
    assert main(["certify", "run", "--model", "some_vision.net161", *few]) == 0


def test_arguments_are_passed_to_the_class(tmp_path):
    assert main(["fit", *TINY, "--model", "some_vision.Net", "--model.width", "7", "--out", "run"]) == 0
    weights = FittedPosterior.load("run", Net(7, 10)).states[0].model.state_dict()
    assert weights["classifier.weight"].shape == (10, 7)


@pytest.mark.parametrize(
    "options", [["some_vision.Untyped", "--model.norm", "[1, 2]"], ["some_vision.untyped_function"]], ids=str
)
def test_arguments_without_a_type_are_read_as_yaml(options, tmp_path, capsys):
    folder = tmp_path / "my run"
    arguments = ["fit", *TINY, "--model", *options, "--model.width", "5", "--out", str(folder)]
    assert main(["fit", *TINY, "--model", options[0], "--out", str(folder)]) == 2
    help_command = re.search(r"Its options: flatbayes (.*)\.", capsys.readouterr().err)[1]
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(help_command))
    assert re.search(r"--model.width.* \(must be given", capsys.readouterr().out)
    assert main(arguments) == 0
    assert FittedPosterior.load(folder, lambda **kwargs: Net(5, 10)).states[0].model.classifier.in_features == 5
    # What is printed as the next command runs, with spaces in paths and a model that is not part of flatbayes.
    command = re.search(r"next +flatbayes (.*)", capsys.readouterr().out)[1]
    assert main(shlex.split(command)) == 0


TYPES_FOR_CHECKERS = """
import typing
from dataclasses import dataclass

from torch import nn

from flatbayes import SAM, SWAG

if typing.TYPE_CHECKING:
    from nowhere import Kind


class Base(nn.Module):
    def __init__(self, width: int = 4, kind: Kind | None = None):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images: Kind):
        return self.layers(images)


class Child(Base):
    def __init__(self, kinds: list[Kind] | None = None, **kwargs):
        super().__init__(**kwargs)


def build(width: int = 4, kind: Kind | None = None) -> Kind:
    return Base(width)


@dataclass(frozen=True)
class Flat(SAM):
    kind: Kind | None = None
"""


@pytest.mark.parametrize("name", ["Base", "Child", "build"])
@pytest.mark.parametrize(
    "header",
    [
        "from __future__ import annotations\n",
        pytest.param("", marks=pytest.mark.skipif(sys.version_info < (3, 14), reason="the module is not importable")),
    ],
    ids=["text", "deferred"],
)
def test_annotations_may_name_types_that_only_type_checkers_import(header, name, tmp_path, monkeypatch):
    (tmp_path / "checked_nets.py").write_text(header + TYPES_FOR_CHECKERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "checked_nets", raising=False)
    options = ["--model", f"checked_nets.{name}", "--model.width", "7", "--flatness", "checked_nets.Flat"]
    assert main(["fit", *TINY, *options, "--out", "run"]) == 0
    module = sys.modules["checked_nets"]
    assert FittedPosterior.load("run", module.Base(7)).states[0].model.layers[1].out_features == 7
    assert main(["evaluate", "run", "--model", f"checked_nets.{name}"]) == 0


def test_new_head_depends_on_the_seed():
    from flatbayes.cli.models import build_with_new_head

    torch.manual_seed(0)
    one, other = (build_with_new_head("some_vision.net161", {"weights": "V1"}, 10) for _ in range(2))
    assert torch.equal(one.features[1].weight, other.features[1].weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


BAD = [
    (["--model", "some_vision.net161"], "outputs of shape (4, 1000), but there are 10 classes"),
    (["--model", "mlp", "--new_head"], "--new_head is for models outside flatbayes"),
    (["--new_head"], "--new_head is for models outside flatbayes"),
    (["--model", "some_vision.unannotated"], "--new_head, makes a fresh one"),
    (["--model", "torch.nn.Identity", "--new_head"], "Identity has no torch.nn.Linear to replace"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[-20:] for _, message in BAD])
def test_invalid_models_are_refused(arguments, message, capsys, tmp_path):
    assert main(["fit", *TINY, *arguments, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class TestFromTrainedNetworks:
    def digits(self, *more):
        return ["fit", "--data", "digits", "--data.train_size", "60", "--batch_size", "20", "--num_draws", "2", *more]

    def test_init_folder_sets_model_and_defaults(self, tmp_path):
        small = ["--model", "mlp", "--model.hidden", "[9]"]
        assert main(self.digits(*small, "--epochs", "4", "--posterior", "map", "--out", "map")) == 0
        some = ["--posterior.params", "last_layer", "--freeze", "[layers.1.*]"]
        some += ["--collection.snapshots_per_epoch", "1"]
        assert main(self.digits("--init", "map", "--posterior.rank", "2", *some, "--out", "swag")) == 0
        config = json.loads((tmp_path / "swag" / "config.json").read_text())
        assert [config["config"][name] for name in ("epochs", "min_epochs", "min_steps")] == [None, 5, 300]
        assert config["config"]["schedule"]["init_args"]["end_factor"] == 0.3
        assert config["config"]["collection"]["snapshots_per_epoch"] == 1  # what is said counts
        assert config["init"] == ["map"]
        point, swag = (FittedPosterior.load(name).states[0] for name in ("map", "swag"))
        assert torch.equal(point.model.layers[1].weight, swag.model.layers[1].weight)
        assert swag.statistics["mean"].numel() == 100
        assert main(["evaluate", "swag", "--num_draws", "2"]) == 0

    def test_functions_with_trained_weights_set_the_defaults_of_init(self, tmp_path):
        for name, more in (("fresh", []), ("trained", ["--model.is_trained", "true"])):
            few = ["--min_epochs", "1", "--min_steps", "4", "--posterior", "map", "--out", name]
            assert main(self.digits("--model", "some_vision.normalized", *more, *few)) == 0
        fresh, trained = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("fresh", "trained"))
        assert fresh["config"]["collection"]["start_fraction"] > 0
        assert trained["config"]["collection"]["start_fraction"] == 0
        assert trained["config"]["schedule"]["init_args"]["end_factor"] == 0.3
        assert trained["config"]["min_steps"] == 4  # what is said counts

    def test_init_file_with_standardization_and_new_head(self, tmp_path, capsys):
        net = Net(6, 1000)
        torch.save({"model": {f"module.{name}": t for name, t in net.state_dict().items()}}, "net.pt")
        model = ["--model", "some_vision.Net", "--model.width", "6", "--init", "net.pt", "--posterior", "map"]
        scale = ["--input_mean", "[4.0]", "--input_std", "[8.0]"]
        assert main(self.digits(*model, *scale, "--epochs", "0", "--out", "run")) == 2
        assert "Only the last layer differs" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        still = ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "1e-30"]
        assert main(self.digits(*model, *scale, *still, "--new_head", "--out", "run")) == 0
        fitted = FittedPosterior.load("run", Net(6, 10))
        assert torch.equal(fitted.states[0].model.features[1].weight, net.features[1].weight)
        assert fitted.transform.mean.item() == 4.0
        assert main(["evaluate", "run", "--model", "some_vision.Net"]) == 0

    def test_invalid_options_are_refused(self, tmp_path, capsys):
        for arguments, message in (
            (["--init", "none.pt"], "no trained weights at none.pt"),
            (["--freeze", "[x.*]"], "pattern 'x.*' of freeze matches no trainable parameter"),
            (["--input_mean", "[1.0]"], "--input_mean and --input_std go together, 1 number each"),
        ):
            assert main(self.digits("--model", "mlp", "--posterior", "map", *arguments, "--out", "run")) == 2
            assert message in capsys.readouterr().err
            assert not (tmp_path / "run").exists()
