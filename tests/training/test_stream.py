"""Training, prediction and evaluation on images that are not in memory: the same to the bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from flatbayes.cli import main
from flatbayes.data import ImageFolder
from flatbayes.flatness import SAM
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG, Laplace
from flatbayes.prediction import evaluate
from flatbayes.training import CollectionConfig, TrainingConfig, fit


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 128, (8, 8), dtype=np.uint8) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("posterior", [SWAG(rank=2), Laplace(prior_precision=1.0)], ids=["SWAG", "Laplace"])
def test_a_stream_trains_as_memory_does(folder, posterior):
    config = TrainingConfig(epochs=2, batch_size=6, collection=CollectionConfig(start_fraction=0.0))
    found = []
    for stream in (False, True):
        data = ImageFolder(path=str(folder), stream=stream, flip=True, pad=1).load(0)
        fitted = fit(ConvNet, data, posterior, SAM(), config)
        result = evaluate(fitted, data.test.inputs, data.test.targets, 3, batch_size=4)
        found.append((fitted.predict(data.val.inputs, 3, batch_size=4).log_probs, result.metrics))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.filterwarnings("default:3 examples are too few")
def test_the_command_line_streams(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "images", "--data.stream", "true", "--model", "convnet", "--epochs", "2"]
    arguments += ["--batch_size", "6", "--collection.start_fraction", "0", "--num_draws", "2", "--out", "run"]
    assert main(["fit", *arguments]) == 0
    assert main(["evaluate", "run", "--num_draws", "2"]) == 0
    assert main(["diagnose", "run", "--num_draws", "2", "--max_examples", "8"]) == 0
    assert main(["shift", "run", "--num_draws", "2", "--max_examples", "4", "--corruptions", "contrast"]) == 0
    assert "3 examples are too few for a temperature" in capsys.readouterr().err
    assert main(["shift", "run", "--num_draws", "2", "--corruptions", "contrast", "--overwrite", "true"]) == 2
    assert "--max_examples on the command line" in capsys.readouterr().err
    assert main(["certify", "run"]) == 2
    assert "in memory, and they are streamed" in capsys.readouterr().err
