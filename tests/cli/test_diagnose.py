"""Command `flatbayes diagnose`: table, files, and refused input."""

import json

import pytest

from flatbayes.cli import main
from flatbayes.cli.diagnose import format_draw_mean

TINY = ["--data", "digits", "--data.train_size", "60", "--model", "mlp",
        "--epochs", "3", "--batch_size", "20", "--collection.start_fraction", "0", "--num_draws", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    swag = ["--posterior", "swag", "--posterior.rank", "2"]
    for name, more in {
        "plain": [*swag, "--model.hidden", "[5]", "--flatness", "plain"],
        "flat": [*swag, "--model.hidden", "[5]", "--flatness.rho", "0.2"],
        "wide": ["--posterior", "map", "--model.hidden", "[6]"],
        "later": ["--posterior", "map", "--model.hidden", "[5]", "--seed", "1"],
        "other": ["--posterior", "map", "--model.hidden", "[5]", "--data.train_size", "50"],
    }.items():
        assert main(["fit", *TINY, *more, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "200")
    return runs


def test_one_run(here, capsys):
    files = {p.name: p.read_bytes() for p in (here / "flat").iterdir() if p.name.startswith("posterior")}
    assert main(["diagnose", "flat", "--num_draws", "3", "--max_examples", "40", "--rho", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "Loss of 40 of 60 train examples, rho = 0.1" in shown
    assert "worst" in shown
    assert "3 draws" in shown
    result = json.loads((here / "flat" / "diagnosis.json").read_text())
    assert result["split"] == "train"
    assert result["num_examples"] == 40
    run = result["runs"]["flat"]
    assert (run["posterior"], run["flatness"], run["seed"]) == ("SWAG(rank=2)", "SAM(rho=0.2)", 0)
    assert run["config"]["rho"] == 0.1
    assert len(run["draws"]) == 3
    assert [row["measure"] for row in run["rows"]] == [
        "loss", "gradient_norm", "one_step", "worst", "average", "adaptive",
    ]  # fmt: skip
    assert not list((here / "flat").glob("*.svg"))
    assert files == {name: (here / "flat" / name).read_bytes() for name in files}


def test_the_log_evidence_of_two_runs(here, capsys, tmp_path):
    command = [
        "diagnose",
        "plain",
        "flat",
        "--num_draws",
        "1",
        "--evidence",
        "last_layer",
        "--max_examples",
        "40",
        "--out",
    ]
    assert main([*command, str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Log evidence by last_layer" in shown
    runs = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["runs"]
    for run in runs.values():
        (evidence,) = run["evidence"]
        assert evidence["num_data"] == 60  # of which 40 are read
        assert evidence["log_evidence"] == evidence["log_likelihood"] + evidence["log_occam_factor"] < 0
        assert f"{evidence['log_evidence'] / 60:.4g}" in shown
    assert main([*command, str(tmp_path / "out"), "--split", "test"]) == 2
    assert "--evidence is that of training examples" in capsys.readouterr().err


def test_two_runs_with_hessian_and_landscape(here, capsys, tmp_path):
    command = ["diagnose", "plain", "flat", "--num_draws", "2", "--hessian", "--landscape", "--num_grid_points", "3",
               "--max_examples", "40", "--split", "val", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "val examples" in shown
    assert "x Plain" in shown
    assert "SAM(rho=0.2)" in shown  # in a narrow terminal on a line of its own
    assert "trace" in shown
    assert "Hessian by double backward" in shown
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"diagnosis.json", "plane.svg", "slices.svg"}
    result = json.loads((out / "diagnosis.json").read_text())
    assert list(result["runs"]) == ["plain", "flat"]
    plane = result["landscape"]["plane"]
    assert list(plane["points"]) == ["plain", "flat"]
    assert len(plane["losses"]) == 3
    assert len(result["landscape"]["slices"]["flat"]) == 5
    assert main(command) == 0  # again, over the same files
    again = json.loads((out / "diagnosis.json").read_text())
    assert again == result


def test_different_seeds_add_a_note(here, capsys, tmp_path):
    assert main(["diagnose", "plain", "later", "--num_draws", "1", "--out", str(tmp_path)]) == 0
    assert "The examples are those of plain" in capsys.readouterr().out
    assert (
        main(
            [
                "diagnose",
                "plain",
                "later",
                "--num_draws",
                "1",
                "--split",
                "test",
                "--out",
                str(tmp_path),
                "--overwrite",
            ]
        )
        == 0
    )
    assert "The examples are those of" not in capsys.readouterr().out


def test_sd_needs_two_draws():
    assert format_draw_mean(0.123456, float("nan")) == "0.123"
    assert format_draw_mean(0.123456, 0.0456) == "0.123 ± 0.05"


BAD = [
    (["diagnose"], "folders"),
    (["diagnose", "nowhere"], "holds no run"),
    (["diagnose", "plain", "plain"], "is given twice"),
    (["diagnose", "plain", "other"], "fitted to other data"),
    (["diagnose", "plain", "wide", "--landscape"], "networks of equal shapes"),
    (["diagnose", "plain", "--rho", "-1"], "radius of a ball"),
    (["diagnose", "plain", "--num_draws", "0"], "at least 1 draw"),
    (["diagnose", "plain", "--max_examples", "0"], "--max_examples must be at least 1"),
    (["diagnose", "plain", "--num_grid_points", "1", "--landscape"], "at least 2 points"),
    (["diagnose", "plain", "--split", "all"], "split"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a[0][-2:]) for a in BAD])
def test_invalid_input_is_refused(here, capsys, arguments, message):
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*")} == before
