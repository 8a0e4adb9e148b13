"""Short class names, and defaults of the named class, on the command line and in configuration files."""

import json

import numpy as np
import pytest
import yaml

from flatbayes.cli import main
from flatbayes.cli.aliases import get_class_defaults, list_names, resolve_arguments, resolve_name, resolve_value
from flatbayes.core.spec import to_spec
from flatbayes.data import Digits, Npz
from flatbayes.flatness import ASAM, LESAM, MSAM, SAM, Periodic, PosteriorSAM
from flatbayes.posteriors import LRT, MAP, SGVB, SWAG, Ensemble


@pytest.mark.parametrize("instance", [ASAM(), LESAM(), SGVB(), SWAG(), LRT(), Ensemble()])
def test_class_path_without_arguments_gets_all_defaults(instance):
    spec = to_spec(instance)
    assert resolve_value({"class_path": spec["class_path"]}) == spec
    assert resolve_value([{"class_path": spec["class_path"], "init_args": None}]) == [spec]


def test_given_arguments_are_kept_and_nested_ones_completed():
    spec = to_spec(Ensemble(SWAG(rank=3), size=2))
    short = {
        "class_path": "flatbayes.posteriors.Ensemble",
        "init_args": {"member": {"class_path": "flatbayes.posteriors.SWAG", "init_args": {"rank": 3}}, "size": 2},
    }
    assert resolve_value({"posterior": short, "epochs": 3}) == {"posterior": spec, "epochs": 3}


@pytest.mark.parametrize(
    "value",
    [
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        {"class_path": 3},
        {"class_path": "flatbayes.no.Such"},
        {"class_path": "flatbayes.flatness.SAM", "init_args": [1]},
        {None: {3: "swag"}},
        7,
        None,
        "x",
    ],
)
def test_other_classes_and_malformed_values_are_unchanged(value):
    assert resolve_value(value) == value


def test_arguments_of_foreign_classes_are_not_resolved():
    spec = {"class_path": "my.Net", "init_args": {"model": "resnet", "data": "x"}}
    assert resolve_value({"model": spec}) == {"model": spec}
    assert get_class_defaults("os.system") == {}


def test_names_in_any_case_resolve_everywhere():
    assert resolve_name("posterior", "swag") == "flatbayes.posteriors.SWAG"
    assert resolve_name("model", "my.Net") == "my.Net"
    assert resolve_name("posterior", "flatbayes.SWAG") == "flatbayes.posteriors.SWAG"
    assert resolve_name("model", "flatbayes.no.Such") == "flatbayes.no.Such"
    for name in list_names("data"):  # such as Npz, which ends like a file
        assert resolve_name("data", f"flatbayes.data.{name}") == f"flatbayes.data.{name}"
    given = {
        "posterior": {"class_path": "ensemble", "init_args": {"member": "swag"}},
        "posteriors": ["map", "SWAG"],
        "flatness": {"class_path": "flatbayes.flatness.Periodic", "init_args": {"flatness": "posteriorsam"}},
        "model": "mlp",
        "data": "digits",
    }
    assert resolve_value(given) == {
        "posterior": to_spec(Ensemble(SWAG())),
        "posteriors": to_spec([MAP(), SWAG()]),
        "flatness": to_spec(Periodic(PosteriorSAM())),
        "model": "flatbayes.models.MLP",
        "data": to_spec(Digits()),
    }


def test_arguments_of_a_command_resolve():
    given = [
        "fit",
        "--data=digits",
        "--model",
        "mlp",
        "--posterior.member",
        "swag",
        "--posteriors+=map",
        "--seed",
        "3",
    ]
    lists = ["--posteriors", "[map, {class_path: swag}]", "--flatness.help", "sam", "--x"]
    swag, map_spec = to_spec(SWAG()), to_spec(MAP())
    assert resolve_arguments([*given, *lists]) == [
        "fit",
        f"--data={json.dumps(to_spec(Digits()))}",
        *("--model", "flatbayes.models.MLP"),
        *("--posterior.member", json.dumps(swag), f"--posteriors+={json.dumps(map_spec)}", "--seed", "3"),
        *("--posteriors", json.dumps([map_spec, swag]), "--flatness.help", "flatbayes.flatness.SAM", "--x"),
    ]


def test_base_classes_are_not_listed():
    assert {"ASAM", "Periodic", "FisherSAM", "LookSAM", "Plain", "SAM"} <= set(list_names("flatness"))
    assert "Flatness" not in list_names("flatness")
    assert list_names("schedule") == ["Constant", "Cosine", "Cyclical", "Polynomial", "SWALinear"]
    assert {"CIFAR10", "Digits", "ImageFolder", "ImageParquet", "Npz", "Table"} <= set(list_names("data"))


def test_path_of_data_resolves_to_its_reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", x=np.zeros((4, 3), np.float32), y=np.array([0, 1, 0, 1]))
    assert resolve_value({"data": "mine.npz"}) == {"data": to_spec(Npz(path="mine.npz"))}
    (tmp_path / "digits").mkdir()
    assert resolve_value({"data": "digits"}) == {"data": to_spec(Digits())}  # a known name before a folder
    with pytest.raises(ValueError, match=r"Unknown data 'other\.npz'.*a path to data that exists"):
        resolve_value({"data": "other.npz"})


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("flatness", "every", r"Unknown flatness 'every'\. Every was renamed to Periodic in 0\.2\. Known: ASAM, "),
        ("posterior", "Point", r"Point was renamed to MAP in 0\.2\."),
        ("flatness", "flatbayes.flatness.Late", r"Late was renamed to Delayed in 0\.2\."),
    ],
)
def test_old_class_name_gets_the_new_one(option, name, message):
    with pytest.raises(ValueError, match=message):
        resolve_value({option: name})


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Parse a `fit` command with a configuration; returns its options."""
    seen = []
    monkeypatch.setattr("flatbayes.cli.fit.run", seen.append)
    monkeypatch.chdir(tmp_path)

    def parse(config, *arguments):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": "digits", **config}))
        assert main(["fit", "--config", "c.yaml", *arguments, "--out", "o"]) == 0
        return seen[-1]

    return parse


@pytest.mark.parametrize("flatness", ["ASAM", "asam", {"class_path": "ASAM"}, {"class_path": "flatbayes.ASAM"}])
def test_short_name_in_yaml_has_the_defaults_of_its_class(options, flatness):
    assert options({"flatness": flatness}).flatness == ASAM() != ASAM(rho=SAM().radius)


def test_arguments_in_yaml_are_kept_and_options_override_them(options):
    config = {"flatness": {"class_path": "sam", "init_args": {"rho": 0.3}}, "posterior": {"class_path": "SGVB"}}
    parsed = options(config, "--posterior.temperature", "0.5")
    assert (parsed.flatness, parsed.posterior) == (SAM(rho=0.3), SGVB(temperature=0.5))
    assert options(config, "--flatness", "msam").flatness == MSAM()


def test_nested_class_has_its_own_defaults(options):
    nested = {"class_path": "periodic", "init_args": {"flatness": "PosteriorSAM"}}
    assert options({"flatness": nested}).flatness == Periodic(PosteriorSAM())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"flatness": "nonsense"}, "Unknown flatness 'nonsense'. Known: ASAM, "),
        ({"posterior": "point"}, "Point was renamed to MAP in 0.2."),
        ({"draws": 3}, "draws was renamed to num_draws in 0.2."),
        ({"flatness": {"class_path": "SAM", "init_args": {"part": 0.5}}}, "renamed to ascent_batch_fraction in 0.2."),
    ],
)
def test_errors_in_yaml_say_what_to_write(tmp_path, monkeypatch, capsys, config, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": "digits", **config}))
    assert main(["fit", "--config", "c.yaml", "--out", "o"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--data", "digits", "--draws", "3", "--out", "o"], "draws was renamed to num_draws in 0.2."),
        (["evaluate", "run", "--part", "test"], "part was renamed to split in 0.2."),
        (["paper", "--table", "x"], "run `python -m reproduction` in a checkout"),
        (["theory", "--out", "x"], "run `python -m studies.double_well` in a checkout"),
    ],
)
def test_old_options_and_verbs_say_the_new_ones(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
