"""Commands for a class at each position: fit, evaluate, calibrate, predict, check and export from an `Npz` file."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from flatbayes.cli import main


class Segmenter(nn.Conv2d):
    def __init__(self, num_classes):
        super().__init__(2, num_classes, 3, padding=1)


MODEL = ["--model", f"{__name__}.Segmenter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(80, 2, 5, 6, generator=generator)
    masks = (images[:, 0] > 0).long() + (images.sum(1) > 1)
    masks[:, 0] = -100
    np.savez(folder / "masks.npz", x=images.numpy(), y=masks.numpy())
    arguments = ["fit", "--data", str(folder / "masks.npz"), "--epochs", "3", "--batch_size", "8"]
    arguments += ["--data.val_size", "0.5"]
    assert main([*arguments, "--out", str(folder / "run"), *MODEL]) == 0
    return folder


def run(command, folder, *arguments):
    return main([command, str(folder / "run"), *MODEL, *map(str, arguments)])


def test_evaluate_and_check(folder, capsys):
    assert run("evaluate", folder) == 0
    assert "mean_iou" in capsys.readouterr().out
    run("check", folder)  # some checks of so short a training fail
    lines = capsys.readouterr().out.splitlines()
    (confidence,) = (line for line in lines if line.split()[:1] == ["confidence"])
    assert confidence.split()[1] != "–"  # it is checked, with images as its unit


def test_predict_has_a_row_for_each_image(folder):
    assert run("predict", folder, "--input", folder / "masks.npz", "--output", folder / "predictions.csv") == 0
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    assert list(rows[0]) == ["confidence", "entropy", "mutual_information", "share_0", "share_1", "share_2"]
    assert sum(float(rows[0][f"share_{k}"]) for k in range(3)) == pytest.approx(1)


@pytest.mark.parametrize("from_file", [False, True])
def test_calibrate(folder, capsys, from_file, monkeypatch):
    assert run("calibrate", folder, *(["--input", folder / "masks.npz"] if from_file else [])) == 0
    assert f"fitted to {80 if from_file else 32} examples" in capsys.readouterr().out
    monkeypatch.setattr("flatbayes.cli.calibrate.calibrate", None)  # what is refused is so before the map is fitted
    assert run("calibrate", folder, "--risk", "[0.1]") == 2
    assert "--risk is for one class of each example" in capsys.readouterr().err
    assert run("calibrate", folder, "--conformal", "[0.9]") == 2
    assert "no sets with a guarantee for a class at each position" in capsys.readouterr().err


def test_export(folder):
    assert run("export", folder, "--format", "torch", "--out", folder / "posterior.pt2") == 0
