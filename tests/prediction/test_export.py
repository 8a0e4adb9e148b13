"""Exported files against the modules from which they were written."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.prediction import FittedPosterior, export_onnx, export_torch, onnx_difference
from flatbayes.prediction import export as export_module
from flatbayes.training import TrainingConfig, fit

from .test_deploy import fit_posterior, make_regression_posterior

TOLERANCE = 1e-5


def normed():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def convolutions():
    torch.manual_seed(2)
    return ConvNet((1, 8, 8), 3, width=4)


CASES = {
    "mlp": (lambda: fit_posterior(SWAG(rank=2), lambda: MLP((1, 8, 8), 3, (8,))), (1, 8, 8)),
    "layer norm": (lambda: fit_posterior(SWAG(rank=2), normed), (1, 8, 8)),
    "batch norm": (
        lambda: fit_posterior(Ensemble(SWAG(rank=2), size=2), lambda: ConvNet((1, 8, 8), 3, width=4)),
        (1, 8, 8),
    ),
    "regression": (make_regression_posterior, (4,)),
    "two targets": (lambda: make_regression_posterior(2), (4,)),
}


SAMPLE = ("batch norm", "two targets")


@pytest.fixture(
    params=[
        pytest.param(case, id=name, marks=[] if name in SAMPLE else [pytest.mark.slow])
        for name, case in CASES.items()
    ]
)
def case(request):
    make, shape = request.param
    return make(), torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))


def test_onnx_agrees(case, tmp_path):
    import onnxruntime

    fitted, x = case
    module = fitted.compile(4)
    path = export_onnx(module, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path))
    assert [i.name for i in session.get_inputs()] == ["inputs"]
    assert [o.name for o in session.get_outputs()] == list(module.output_names)
    for rows in (1, 7):  # batch sizes other than that of the export
        outputs = session.run(None, {"inputs": x[:rows].numpy()})
        for name, values in zip(module.output_names, outputs, strict=True):
            expected = module(x[:rows])[name].numpy()
            np.testing.assert_allclose(values, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert onnx_difference(module, path, x) < TOLERANCE
    assert onnx_difference(module, path) < TOLERANCE


def test_torch_agrees(case, tmp_path):
    fitted, x = case
    module = fitted.compile(4)
    program = torch.export.load(export_torch(module, tmp_path / "model.pt2")).module()
    for rows in (1, 7):
        for name, values in program(x[:rows]).items():
            torch.testing.assert_close(values, module(x[:rows])[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_difference_is_measured(tmp_path):
    module = make_regression_posterior().compile()
    path = export_onnx(module, tmp_path / "model.onnx")
    with torch.no_grad():
        next(module.networks.parameters()).mul_(2)
    assert onnx_difference(module, path) > 1e-3


def test_inputs_are_required_if_their_shape_is_unknown(tmp_path):
    fitted = FittedPosterior(MAP(), [MAP().init(nn.Linear(4, 3), None, 5)], Categorical(3))
    module, x = fitted.compile(1), torch.randn(1, 4)
    with pytest.raises(ValueError, match="pass `inputs`"):
        export_torch(module, tmp_path / "a.pt2")
    path = export_onnx(module, tmp_path / "a.onnx", x)
    with pytest.raises(ValueError, match="pass `inputs`"):
        onnx_difference(module, path)
    assert onnx_difference(module, path, torch.randn(5, 4)) < TOLERANCE


class DataDependentNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        out = self.layer(x)
        return out if float(out.sum()) > 0 else -out


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_traced_is_refused_without_a_file(tmp_path):
    fitted = FittedPosterior(
        MAP(), [MAP().init(DataDependentNetwork(), None, 5)], Categorical(3), info={"input_shape": [4]}
    )
    with pytest.raises(ValueError, match="must not depend on the values"):
        export_torch(fitted.compile(1), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_too_large_and_missing_packages(tmp_path, monkeypatch):
    module = make_regression_posterior().compile()
    monkeypatch.setattr(export_module, "MAX_ONNX_BYTES", 10)
    with pytest.raises(ValueError, match="Compile fewer draws"):
        export_onnx(module, tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"flatbayes\[export\]"):
        export_onnx(module, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


IMAGES = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 9, (20, 5), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 2


class TokenNetwork(nn.Module):
    """A network of token ids."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(self.embedding(x).mean(1))


def make_image_network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


INTEGERS = {
    "standardized images": (make_image_network, (IMAGES, LABELS), IMAGES, torch.float32),
    "images of a loader": (make_image_network, [(IMAGES, LABELS)], IMAGES, torch.float32),
    "integer features": (lambda: nn.Linear(5, 2), [(TOKENS, LABELS)], TOKENS, torch.float32),
    "truth values": (lambda: nn.Linear(5, 2), [(TOKENS > 4, LABELS)], TOKENS > 4, torch.float32),
    "tokens": (TokenNetwork, [(TOKENS, LABELS)], TOKENS, None),
}


FAST = ("images of a loader", "tokens")


@pytest.mark.parametrize(
    ("model", "data", "inputs", "default"),
    [
        pytest.param(*case, id=name, marks=[] if name in FAST else [pytest.mark.slow])
        for name, case in INTEGERS.items()
    ],
)
def test_integers_are_inputs_of_modules_and_files_as_of_predictions(model, data, inputs, default, tmp_path):
    import onnxruntime

    fitted = fit(model, data, MAP(), Plain(), TrainingConfig(epochs=1, batch_size=10))
    module, expected = fitted.compile(), fitted.predict(inputs).mean.numpy()
    np.testing.assert_allclose(module(inputs)["mean"].numpy(), expected, atol=TOLERANCE)
    assert (None if module.example is None else module.example.dtype) == default
    options = {"inputs": inputs[:1]} if default is None else {"dtype": inputs.dtype}
    program = torch.export.load(export_torch(module, tmp_path / "a.pt2", **options)).module()
    np.testing.assert_allclose(program(inputs)["mean"].numpy(), expected, atol=TOLERANCE)
    path = export_onnx(module, tmp_path / "a.onnx", **options)
    (outputs,) = onnxruntime.InferenceSession(str(path)).run(["mean"], {"inputs": inputs.numpy()})
    np.testing.assert_allclose(outputs, expected, atol=TOLERANCE)
    assert onnx_difference(module, path, inputs if default is None else None) < TOLERANCE


def test_images_as_stored_are_refused_where_training_scaled_them():
    fitted = fit(make_image_network, [(IMAGES / 255, LABELS)], MAP(), Plain(), TrainingConfig(epochs=1))
    for predict in (fitted.predict, fitted.compile()):
        with pytest.raises(ValueError, match="The inputs are uint8 images"):
            predict(IMAGES)


@pytest.mark.parametrize("export", [export_torch, export_onnx])
def test_a_posterior_that_is_not_compiled_is_refused_with_how_to_compile_it(export, tmp_path):
    fitted = fit_posterior(MAP(), lambda: MLP((1, 8, 8), 3, (8,)))
    with pytest.raises(TypeError, match=r"got a FittedPosterior: pass fitted\.compile"):
        export(fitted, tmp_path / "file")
