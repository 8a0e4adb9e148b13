"""Command `flatbayes shift`: tables, files, and refused input."""

import json

import numpy as np
import pytest
import torch

from flatbayes.cli import main
from flatbayes.cli.main import _parse_verb, build_parser

TINY = ["--model", "mlp", "--model.hidden", "[16]", "--epochs", "3", "--batch_size", "20",
        "--collection.start_fraction", "0", "--num_draws", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    table = folder / "t.csv"
    table.write_text("a,b,y\n" + "".join(f"{k % 7},{k % 5},{k % 2}\n" for k in range(200)))
    swag = ["--posterior", "swag", "--posterior.rank", "2"]
    for name, more in {
        "digits": ["--data", "digits", "--data.train_size", "60", *swag],
        "half": ["--data", "classsplit", "--data.train_size", "60", *swag],
        "table": ["--data", str(table), "--data.target", "y", "--posterior", "map"],
        "number": ["--data", "diabetes", "--posterior", "map"],
    }.items():
        assert main(["fit", *TINY, *more, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "120")
    for old in runs.glob("*/shift.*"):
        old.unlink()
    return runs


def read_results(folder):
    return json.loads((folder / "shift.json").read_text())


def test_corruptions(here, capsys):
    fitted = {p.name: p.read_bytes() for p in (here / "digits").iterdir()}
    assert (
        main(["shift", "digits", "--corruptions", "fog, shot_noise", "--severities", "[1,5]", "--num_draws", "2"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "Temperature" in shown
    assert "shot_noise" in shown
    assert "shift.svg" in shown
    assert "against" not in shown  # nothing from outside was named
    results = read_results(here / "digits")
    assert [(row["corruption"], row["severity"]) for row in results["corruptions"]] == [
        ("clean", 0), ("fog", 1), ("fog", 5), ("shot_noise", 1), ("shot_noise", 5),
    ]  # fmt: skip
    assert results["run"]["posterior"] == "SWAG(rank=2)"
    assert results["recalibrated"]["raw"]["nll"] == pytest.approx(results["corruptions"][0]["nll"])
    assert "<svg" in (here / "digits" / "shift.svg").read_text()
    assert {name: (here / "digits" / name).read_bytes() for name in fitted} == fitted


def test_fifteen_corruptions_by_default(here):
    assert main(["shift", "digits", "--severities", "[3]", "--num_draws", "1", "--max_examples", "20"]) == 0
    results = read_results(here / "digits")
    assert len(results["corruptions"]) == 16
    assert results["examples"] == 20


def test_left_out_classes_are_ood_by_default(here, capsys):
    assert main(["shift", "half", "--corruptions", "none", "--num_draws", "2"]) == 0
    assert "examples of the classes left out (positive) against 450 test examples" in " ".join(
        capsys.readouterr().out.split()
    )
    results = read_results(here / "half")
    assert "corruptions" not in results
    assert results["ood"]["num_ood"] == 448
    assert 0 <= results["ood"]["scores"]["entropy"]["auroc"] <= 1
    assert not (here / "half" / "shift.svg").exists()


def test_ood_data_by_name_and_by_path(here):
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    np.savez(here / "foreign.npz", x=images.numpy(), y=np.arange(30) % 3)
    for ood, name in {"foreign.npz": "Npz(path=foreign.npz)", "digits": "Digits"}.items():
        assert (
            main(
                [
                    "shift",
                    "half",
                    "--corruptions",
                    "none",
                    "--num_draws",
                    "2",
                    "--ood",
                    ood,
                    "--max_examples",
                    "5",
                    "--overwrite",
                ]
            )
            == 0
        )
        results = read_results(here / "half")["ood"]
        assert results["source"] == name
        assert (results["num_test"], results["num_ood"]) == (5, 5)


def test_images_of_corrupted_folder(here):
    folder = here / "stored"
    folder.mkdir(exist_ok=True)
    np.save(folder / "fog.npy", np.random.default_rng(0).integers(0, 17, (50, 8, 8, 1), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(10))
    arguments = ["shift", "digits", "--corrupted_folder", "stored", "--severities", "[2]", "--num_draws", "1"]
    assert main([*arguments, "--corruptions", "all"]) == 0
    results = read_results(here / "digits")
    assert [row["corruption"] for row in results["corruptions"]] == ["clean", "fog"]
    assert results["corrupted_images"] == "files"


def test_table_data_get_temperature_scaling(here):
    assert main(["shift", "table", "--num_draws", "1"]) == 0
    assert read_results(here / "table")["recalibrated"]["temperature"] > 0


BAD = [
    (["shift", "nowhere"], "holds no run"),
    (["shift", "digits", "--corruptions", "fog,rain"], "Unknown corruption 'rain' for images of the shape (1, 8, 8)"),
    (["shift", "digits", "--corruptions", "saturate"], "Unknown corruption 'saturate'"),
    (["shift", "digits", "--severities", "[0]"], "--severities are numbers from 1 to 5"),
    (["shift", "digits", "--severities", "[]"], "--severities are numbers from 1 to 5"),
    (["shift", "digits", "--num_draws", "0"], "at least 1 draw"),
    (["shift", "digits", "--max_examples", "0"], "--max_examples must be at least 1"),
    (["shift", "digits", "--ood", "nonsense"], "Unknown data 'nonsense'"),
    (["shift", "digits", "--ood", "t.csv"], "target"),
    (["shift", "digits", "--corruptions", "none", "--ood", "diabetes"], "(10,), and the model's inputs (1, 8, 8)"),
    (["shift", "digits", "--corrupted_folder", "nowhere"], "no corrupted images in nowhere"),
    (["shift", "table", "--corruptions", "fog"], "the inputs of this run are 2 features"),
    (["shift", "number"], "classes and several labels"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a[1:]) for a, _ in BAD])
def test_invalid_input_gives_a_message_and_writes_nothing(here, capsys, arguments, message):
    before = sorted(here.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [["fog,contrast"], ["fog", "contrast"], ["[fog, contrast]"], ["[fog,", "contrast]"]]
)
def test_lists_of_corruptions_are_understood_in_every_form(words):
    options = parse_verb(["shift", "x", "--corruptions", *words])
    assert options.corruptions == ["fog", "contrast"]


@pytest.mark.parametrize("words", [["a.b", "c"], ["a.b,c"], ["[a.b, c]"]])
def test_lists_of_modules_are_understood_in_every_form(words):
    assert parse_verb(["evaluate", "x", "--trust", *words]).trust == ["a.b", "c"]


def parse_verb(arguments):
    """Options of a verb, without running it."""
    options = _parse_verb(build_parser(), arguments)
    return options[options.subcommand]
