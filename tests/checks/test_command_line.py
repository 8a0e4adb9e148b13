"""Self-checks on the command line: printed, kept in the artefact, and a column of predictions."""

import csv

import numpy as np

from flatbayes import FittedPosterior
from flatbayes.cli import main

FIT = ["fit", "--out", "run", "--data", "table.csv", "--data.target", "kind", "--epochs", "4", "--num_draws", "4"]


def write_table(path, rows, names, shift=0.0):
    inputs = np.random.default_rng(0).normal(size=(rows, 3)) + shift
    kinds = np.array(["cat", "dog"])[(inputs[:, 0] > shift).astype(int)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([*map(float, row), kind][: len(names)] for row, kind in zip(inputs, kinds, strict=True))


def test_checks_are_printed_kept_and_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", 200, ["a", "b", "c", "kind"])
    assert main([*FIT, "--posterior", "swag", "--posterior.scale", "1e-6"]) == 0
    printed = capsys.readouterr().out
    report = FittedPosterior.load("run").checks
    assert not report["one_network"].passed
    assert report.describe() in printed
    assert all(line.partition(" Next: ")[0] in printed for line in report.format_failures())
    # Remedies are options and verbs of the command line.
    assert "Next: --scale auto, or a larger one" in printed
    assert "=" not in printed.partition("checks ")[2].partition("saved")[0]
    assert "checks" in FittedPosterior.load("run").summary()

    assert main(["evaluate", "run", "--num_draws", "4"]) == 0
    assert "one_network: The draws are practically one network" in capsys.readouterr().out

    before = sorted((path, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert main(["check", "run", "--num_draws", "4"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.splitlines()[0] == report.summary().splitlines()[0]
    assert "–       classes have no intervals; flatbayes calibrate run gives sets with a guarantee" in printed
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file()) == before

    for name, shift in (("like.csv", 0.0), ("unlike.csv", 30.0)):
        write_table(tmp_path / name, 20, ["a", "b", "c"], shift)
        assert main(["predict", "run", "--input", name, "--output", f"out-{name}", "--num_draws", "2"]) == 0
        with (tmp_path / f"out-{name}").open() as file:
            flags = [row["outside_training"] for row in csv.DictReader(file)]
        assert flags == [str(shift > 0)] * 20
