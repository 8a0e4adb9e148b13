"""Torch datasets on the command line: options, YAML, and run folders of others."""

import json
import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest

from flatbayes.cli import main
from flatbayes.cli.aliases import resolve_arguments
from flatbayes.cli.parsing import load_bounded_yaml

TRAINING = ["--model", "MLP", "--model.hidden", "[4]", "--posterior", "MAP", "--epochs", "1", "--num_draws", "2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch") / "run"
    arguments = ["--data.num_examples", "40", "--data.val_size", "10", "--out", str(folder)]
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["fit", "--data", "torch_datasets.PointsWithTrain", *arguments, *TRAINING]) == 0
    command = re.search(r"next +flatbayes (.*)", printed.getvalue())[1]
    assert main(shlex.split(command)) == 0  # it names the dataset
    return folder


def test_options_of_the_dataset_are_separated_from_those_of_the_source(run_folder):
    spec = json.loads((run_folder / "config.json").read_text())["data"]
    assert spec["class_path"] == "flatbayes.data.TorchDataset"
    assert spec["init_args"]["dataset"] == "torch_datasets.PointsWithTrain"
    assert spec["init_args"]["options"] == {"num_examples": 40}
    assert spec["init_args"]["val_size"] == 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data=torch_datasets.Points", "--data.seed=1"], "--data.options.seed=1"),
        (["--data", "torch_datasets.Points", "--data.val_size", "3"], "--data.val_size"),
        (["--data", "digits", "--data.pad", "3"], "--data.pad"),
        (
            ["--data", "ClassSplit", "--data.source", "torch_datasets.Points", "--data.source.seed", "1"],
            "--data.source.options.seed",
        ),
    ],
)
def test_only_options_of_torch_datasets_are_rewritten(arguments, expected):
    assert expected in resolve_arguments(["fit", *arguments])


def test_yaml_may_name_a_torch_dataset():
    text = "{data: {class_path: torch_datasets.Points, init_args: {num_examples: 9, test_size: 3}}}"
    data = load_bounded_yaml(text)["data"]
    assert data["class_path"] == "flatbayes.data.TorchDataset"
    assert data["init_args"]["dataset"] == "torch_datasets.Points"
    assert data["init_args"]["options"] == {"num_examples": 9}
    assert data["init_args"]["test_size"] == 3


def test_help_shows_the_options_of_the_source(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "torch_datasets.Points"])
    assert "--data.train_split" in capsys.readouterr().out


def test_compare_trains_on_a_torch_dataset(tmp_path):
    arguments = ["--data.num_examples", "40", "--model", "MLP", "--model.hidden", "[4]", "--epochs", "1"]
    more = [
        "--posteriors",
        "[MAP]",
        "--num_seeds",
        "1",
        "--num_draws",
        "2",
        "--num_jobs",
        "1",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main(["compare", "--data", "torch_datasets.PointsWithTrain", *arguments, *more]) == 0


@pytest.mark.parametrize("verb", ["fit", "compare", "tune"])
def test_a_dataset_of_dictionaries_is_for_python(verb, capsys, tmp_path):
    arguments = ["--data", "torch_datasets.Dictionaries", "--model", "MLP", "--out", str(tmp_path / "x")]
    assert main([verb, *arguments]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "needs inputs that are one array, and these are several tensors: inputs['image']" in message
    assert not (tmp_path / "x").exists()


def test_a_data_source_of_ones_own_keeps_its_options(tmp_path):
    arguments = ["--data.val_size", "9", "--out", str(tmp_path / "x"), *TRAINING]
    assert main(["fit", "--data", "torch_datasets.PointsSource", *arguments]) == 0
    spec = json.loads((tmp_path / "x" / "config.json").read_text())["data"]
    assert spec["class_path"] == "torch_datasets.PointsSource"
    assert spec["init_args"]["val_size"] == 9


def test_wrong_options_list_the_parameters(capsys, tmp_path):
    arguments = ["--data", "torch_datasets.Points", "--data.root", "x", "--out", str(tmp_path / "x")]
    assert main(["fit", *arguments]) == 2
    assert "Its parameters are ['num_examples', 'targets', 'seed']" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_path_is_refused(capsys, tmp_path):
    assert main(["fit", "--data", "torch_datasets.Missing", "--out", str(tmp_path / "x")]) == 2
    assert "'torch_datasets.Missing' does not lead to a class or function" in " ".join(
        capsys.readouterr().err.split()
    )


VERBS = {
    "evaluate": ["--num_draws", "2"],
    "check": ["--num_draws", "2"],
    "calibrate": ["--num_draws", "2"],
    "shift": ["--num_draws", "2", "--ood", "torch_datasets.Points"],
    "diagnose": ["--num_draws", "2"],
    "certify": ["--num_draws", "20", "--num_test_draws", "2"],
}


@pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_a_run_folder_is_read_if_the_user_names_the_dataset(run_folder, verb):
    assert main([verb, str(run_folder), "--data", "torch_datasets.PointsWithTrain", *VERBS[verb]]) == 0


@pytest.mark.parametrize("named", [[], ["--data", "torch_datasets.Points"]])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_path_that_only_the_run_folder_names_is_never_imported(
    run_folder, tmp_path, monkeypatch, capsys, verb, nested, named
):
    # The configuration of a stranger names a module that would write a file when it is imported.
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((run_folder / "config.json").read_text())
    config["data"]["init_args"]["dataset"] = "stranger.Dataset"
    if nested:
        config["data"] = {"class_path": "flatbayes.data.ClassSplit", "init_args": {"source": config["data"]}}
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run_folder.iterdir():
        if file.is_file() and file.name != "certificate.json":
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "config.json").write_text(json.dumps(config))
    assert main([verb, str(copy), *named, *VERBS[verb]]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "'stranger.Dataset' is not part of flatbayes.data" in message
    assert "--data stranger.Dataset" in message
    assert not (tmp_path / "imported").exists()
    assert "stranger" not in sys.modules


def test_labels_of_runs_do_not_import_their_classes(tmp_path, monkeypatch):
    from flatbayes.core.spec import short_name

    (tmp_path / "stranger2.py").write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert short_name({"class_path": "stranger2.Net", "init_args": {"depth": 3}}) == "Net(depth=3)"
    assert "stranger2" not in sys.modules
