"""The verb `reference`, and `compare --reference`."""

import json
import warnings

from flatbayes.cli import main
from flatbayes.reference import Reference

DATA = ["--data", "digits", "--train_size", "40", "--model", "MLP", "--model.hidden", "[4]"]
SHORT = ["--num_chains", "2", "--num_steps", "20", "--num_draws", "5", "--num_tuning_steps", "20"]


def test_a_reference_is_written_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["reference", *DATA, *SHORT, "--num_descent_steps", "20", "--prior_precision", "5", "--seed", "0"]
    assert main([*command, "--out", "plain.safetensors"]) == 0
    assert "R-hat" in capsys.readouterr().out
    assert main([*command, "--rho", "0.1", "--out", "flat.safetensors"]) == 0
    assert Reference.load("flat.safetensors").config.rho == 0.1
    assert main([*command, "--out", "plain.safetensors"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "is a folder: choose the name of a file for --out" in capsys.readouterr().err
    compared = ["compare", *DATA, "--posteriors", "[MAP]", "--num_seeds", "1", "--epochs", "1", "--num_jobs", "1"]
    references = ["--reference", "[plain.safetensors, flat.safetensors]"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main([*compared, *references, "--out", "results"]) == 0
    assert "note: Distances of ['MAP'] to the reference include" in capsys.readouterr().err
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert {"agreement", "tv", "agreement_flat", "tv_flat"} <= set(results["runs"][0]["metrics"])
    assert main([*compared, *references, "--train_size", "41", "--out", "others"]) == 2
    assert "train has 41 rows instead of 40" in capsys.readouterr().err
