"""Command `flatbayes export`: files, and refused input."""

import json
import sys

import numpy as np
import pytest
import torch

from flatbayes.cli import main
from flatbayes.prediction import FittedPosterior

TINY = ["--data", "digits", "--data.train_size", "60", "--model", "mlp", "--model.hidden", "[8]",
        "--epochs", "3", "--batch_size", "20", "--collection.start_fraction", "0", "--num_draws", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(["fit", *TINY, "--posterior", "swag", "--posterior.rank", "2", "--out", str(folder)]) == 0
    return folder


def test_onnx(run, tmp_path, capsys):
    import onnxruntime

    path = tmp_path / "deep" / "m.onnx"
    arguments = ["export", str(run), "--format", "onnx", "--num_draws", "3", "--seed", "5", "--out", str(path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "3 networks in" in shown
    assert "mean, entropy, mutual_information" in shown
    assert "onnxruntime differs by" in shown
    x = np.random.default_rng(0).integers(0, 17, (6, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path))
    digits = [str(digit) for digit in range(10)]
    assert f"classes  {', '.join(digits)}" in shown
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == digits
    result = session.run(["mean", "entropy"], {"inputs": x})
    expected = FittedPosterior.load(run).predict(x, 3, seed=5)
    np.testing.assert_allclose(result[0], expected.mean, atol=1e-5)
    np.testing.assert_allclose(result[1], expected.entropy, atol=1e-5)


def test_torch(run, tmp_path, capsys):
    path = tmp_path / "m.pt2"
    arguments = ["export", str(run), "--format", "torch", "--num_draws", "3", "--dtype", "uint8", "--out", str(path)]
    path.write_text("of another export")
    assert main(arguments) == 2
    assert "m.pt2 exists: choose another --out, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    x = torch.randint(0, 17, (6, 1, 8, 8), dtype=torch.uint8)
    expected = FittedPosterior.load(run).predict(x, 3).mean.float()
    texts = {"class_names": ""}
    torch.testing.assert_close(
        torch.export.load(path, extra_files=texts).module()(x)["mean"], expected, rtol=1e-4, atol=1e-6
    )
    assert json.loads(texts["class_names"]) == [str(digit) for digit in range(10)]


def test_invalid_input_is_refused(run, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "m.onnx")]
    assert main(["export", str(run), "--format", "tensorrt", *out]) == 2
    assert "must be one of torch, onnx, got 'tensorrt'" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--format", "onnx", *out]) == 2
    assert "no fitted posterior" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "onnx", "--num_draws", "0", *out]) == 2
    assert "at least 1 draw" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run), "--format", "onnx", *out]) == 2
    assert "flatbayes[export]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
