"""Device, precision and compilation of predictions."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flatbayes.core.devices import treat_cpu_as_accelerator
from flatbayes.likelihoods import Categorical, CategoricalPredictive, Gaussian, GaussianPredictive
from flatbayes.posteriors import MAP, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.prediction import FittedPosterior, artefact, evaluate, placement, sampling
from flatbayes.prediction.placement import PreprocessedBatches
from support import batch, network

X, Y = batch(3, size=20)


def in_bfloat16(fitted, num_draws):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = [net(fitted.transform(X)) for net in fitted.sample_networks(num_draws)]
    return fitted.likelihood.predictive(outputs).log_probs


@pytest.mark.parametrize("posterior", [MAP(), Ensemble(size=2), MCDropout()], ids=str)
@pytest.mark.parametrize("vectorized", [None, True])
def test_mixed_precision_is_that_of_autocast(make, posterior, vectorized):
    if vectorized and isinstance(posterior, MCDropout):
        pytest.skip("its draws are more than weights")
    fitted = make(posterior)
    mixed = fitted.predict(X, 4, precision="bf16-mixed", vectorized=vectorized, batch_size=20).log_probs
    torch.testing.assert_close(mixed, in_bfloat16(fitted, 4), rtol=0, atol=1e-2 if vectorized else 1e-12)
    full = fitted.predict(X, 4, vectorized=vectorized, batch_size=20).log_probs
    assert 0 < (mixed - full).abs().max() < 0.1


def test_the_precision_of_training_is_that_of_the_fit(make):
    fitted = make(MAP())
    for mode, same_as in {"32-true": None, "bf16-mixed": "bf16-mixed"}.items():
        fitted.info["precision"] = mode
        expected = fitted.predict(X, precision=same_as).log_probs
        assert torch.equal(fitted.predict(X, precision="training").log_probs, expected)


def test_statistics_of_draws_are_kept_by_precision(make):
    fitted = make(SWAG(rank=3))
    full = fitted.predict(X, 2).log_probs
    stored = {key: dict(value) for key, value in fitted.norm_statistics.items()}
    mixed = fitted.predict(X, 2, precision="bf16-mixed").log_probs
    assert fitted.norm_statistics.keys() == stored.keys()
    assert torch.equal(fitted.predict(X, 2).log_probs, full)
    fresh = make(SWAG(rank=3))
    assert torch.equal(fresh.predict(X, 2, precision="bf16-mixed").log_probs, mixed)
    assert not fresh.norm_statistics


def test_precisions_that_the_networks_do_not_have_are_refused(make):
    fitted = make(MAP())
    with pytest.raises(ValueError, match="precision must be None or one of training, bf16-mixed, 16-mixed"):
        fitted.predict(X, precision="bf16")
    fitted.states[0].model.double()
    with pytest.raises(ValueError, match=r"for networks of float32, and the weights are float64: leave out"):
        fitted.predict(X, precision="bf16-mixed")


def test_a_compiled_network_predicts_every_draw(make, monkeypatch):
    compiled = []

    def compile_network(module):
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile_network)
    fitted = make(Ensemble(SWAG(rank=2), size=2))
    expected = fitted.predict(X, 4).log_probs
    for _ in range(2):
        assert torch.equal(fitted.predict(X, 4, compiled=True).log_probs, expected)
    assert compiled == [state.model for state in fitted.states]
    assert evaluate(fitted, X, Y, 4, compiled=True).metrics == evaluate(fitted, X, Y, 4).metrics


def test_draws_that_are_other_modules_are_not_compiled(make):
    fitted = make(Laplace("last_layer", prior_precision=1.0))
    with pytest.raises(ValueError, match="a LinearisedNetwork, another module for every draw.* leave out compiled"):
        fitted.predict(X, 2, compiled=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("posterior", [SWAG(rank=3), MCDropout()], ids=str)
def test_torch_compile_predicts_what_the_network_predicts(make, posterior):
    fitted = make(posterior)
    if isinstance(posterior, MCDropout):  # its masks are others
        assert fitted.predict(X, 3, compiled=True).log_probs.isfinite().all()
        return
    torch.testing.assert_close(fitted.predict(X, 3, compiled=True).log_probs, fitted.predict(X, 3).log_probs)


@pytest.fixture
def device_kind(monkeypatch):
    """What kind of device the CPU is said to be."""
    kind = SimpleNamespace(name="cpu")
    for module in (sampling, artefact):
        monkeypatch.setattr(module, "describe_device", lambda device: kind.name)
    return kind


def move_to(fitted, device_kind, name):
    describe = sampling.describe_device
    names = iter([device_kind.name, name])
    sampling.describe_device = lambda device: next(names)
    fitted.to("cpu")
    sampling.describe_device, device_kind.name = describe, name


def test_statistics_of_draws_on_a_device_are_used_again(make, device_kind):
    fitted = make(SWAG(rank=3))
    fitted.predict(X, 2)
    on_cpu = dict(fitted.norm_statistics)
    move_to(fitted, device_kind, "cuda H100")
    assert not fitted.norm_statistics  # the same seed draws other networks there
    fitted.predict(X, 3)
    on_cuda = dict(fitted.norm_statistics)
    assert len(on_cuda) == 3
    move_to(fitted, device_kind, "cpu")
    assert fitted.norm_statistics == on_cpu
    move_to(fitted, device_kind, "cuda H100")
    assert fitted.norm_statistics == on_cuda
    move_to(fitted, device_kind, "cuda V100")
    assert not fitted.norm_statistics


def test_an_artefact_keeps_the_statistics_of_draws_on_its_device(make, device_kind, tmp_path):
    fitted = make(SWAG(rank=3))
    move_to(fitted, device_kind, "cuda H100")
    fitted.predict(X, 2)
    stored = dict(fitted.norm_statistics)
    fitted.save(tmp_path)
    assert json.loads((tmp_path / "posterior.json").read_text())["norm_device"] == "cuda H100"
    same_device = FittedPosterior.load(tmp_path, network)
    assert same_device.norm_statistics.keys() == stored.keys()
    device_kind.name = "cpu"
    elsewhere = FittedPosterior.load(tmp_path, network)
    assert not elsewhere.norm_statistics
    move_to(elsewhere, device_kind, "cuda H100")
    assert elsewhere.norm_statistics.keys() == stored.keys()


def test_networks_of_float64_cannot_go_where_there_is_none(make):
    fitted = make(MAP())
    fitted.states[0].model.double()
    with (
        treat_cpu_as_accelerator(has_float64=False),
        pytest.raises(ValueError, match="weights of float64, which the device cpu does not have"),
    ):
        fitted.to("cpu")


@pytest.mark.parametrize("likelihood", [Categorical(2), Gaussian(), Gaussian(2)], ids=str)
def test_predictions_move_with_all_their_tensors(likelihood):
    outputs = [torch.randn(5, likelihood.num_outputs, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    predictive = likelihood.predictive(outputs, keep_members=True)
    moved = predictive.to("meta")
    assert {value.device.type for value in vars(moved).values() if value is not None} == {"meta"}
    assert type(moved) in (CategoricalPredictive, GaussianPredictive)
    with treat_cpu_as_accelerator(has_float64=False):
        narrowed = likelihood.predictive(outputs).to("cpu")
    assert narrowed.mean.dtype == torch.float32
    torch.testing.assert_close(narrowed.mean.double(), predictive.mean)
    assert narrowed.entropy.isfinite().all()


def test_inputs_are_copied_to_a_device_once_if_they_fit(make, monkeypatch):
    fitted, memory = make(SWAG(rank=3)), SimpleNamespace(free=float("inf"))
    copies = []
    monkeypatch.setattr(placement, "get_free_memory", lambda device: memory.free)
    monkeypatch.setattr(placement, "map_tensors", lambda place, batch: copies.append(len(batch)) or place(batch))
    expected = fitted.predict(X, 3, vectorized=False).log_probs
    assert not copies  # on the CPU there is nothing to copy
    with treat_cpu_as_accelerator():
        predicted = fitted.predict(X, 3, vectorized=False).log_probs
        torch.testing.assert_close(predicted, expected, rtol=1e-12, atol=0)  # sums of all rows, or of blocks
        num_batches = len(fitted.statistics_inputs)
        assert len(copies) == 1 + num_batches * any(isinstance(m, nn.BatchNorm2d) for m in network().modules())
        fitted.predict(X, 3, vectorized=False)
        assert len(copies) == 2 + num_batches
        memory.free = 1.0
        fitted.predict(X, 3, vectorized=False)
        assert len(copies) == 2 + num_batches


class WritesInputs(nn.Linear):
    """A network that changes its input in place."""

    def forward(self, x):
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("transform", [None, lambda x: x + 1, lambda x: x + torch.rand(())], ids=["", "+1", "random"])
@pytest.mark.parametrize("layer", [nn.Linear, WritesInputs])
def test_inputs_are_preprocessed_once_and_every_network_sees_the_original(layer, transform):
    calls, posterior, x = [], Ensemble(MAP(), size=3), torch.randn(5, 2)
    states = [posterior.init(layer(2, 3).requires_grad_(True), None, 5) for _ in range(3)]

    def count_calls(batch):
        calls.append(len(batch))
        return batch if transform is None else transform(batch)

    fitted, before = FittedPosterior(posterior, states, Categorical(3), count_calls), x.clone()
    probs = fitted.predict(x, batch_size=3, keep_members=True, vectorized=False).member_probs
    is_repeated = layer is WritesInputs or (transform is not None and transform(x).ne(transform(x)).any())
    assert calls == ([3, 2] * 3 if is_repeated else [3, 2])
    assert torch.equal(x, before)
    if transform is None or not transform(x).ne(transform(x)).any():
        inputs = x if transform is None else transform(x)
        for state, member_probs in zip(states, probs, strict=True):
            torch.testing.assert_close(member_probs, state.model(inputs.clone()).softmax(-1).detach())


def test_preprocessed_inputs_are_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(placement, "MAX_PREPROCESSED_BYTES", 2 * 3 * 4)  # one of two batches of three numbers
    calls = []
    batches = PreprocessedBatches([torch.zeros(3)] * 2, lambda batch: calls.append(1) or batch + 1.0, num_networks=3)
    for _ in range(3):
        assert [float(total) for total in batches.map(torch.sum)] == [3.0, 3.0]
    assert len(calls) == 2
    monkeypatch.setattr(placement, "MAX_PREPROCESSED_BYTES", 3 * 4)
    batches = PreprocessedBatches([torch.zeros(3)] * 2, lambda batch: calls.append(1) or batch + 1.0, num_networks=3)
    for _ in range(3):
        list(batches.map(torch.sum))
    assert len(calls) == 2 + 2 + 2
