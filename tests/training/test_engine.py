"""What runs networks in training: every way of doing it gives the same numbers, as far as its precision goes."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from flatbayes.data import DataSplits, Split
from flatbayes.flatness import SAM, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import MAP, SGVB, SWAG
from flatbayes.training import CollectionConfig, TrainingConfig, fit
from flatbayes.training.distributed import launch
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.engine import Engine, clip_gradient_norm
from flatbayes.training.fabric import FULL_PRECISIONS, SingleDevice

SHORT = TrainingConfig(
    epochs=2,
    batch_size=16,
    num_validations=0,
    collection=CollectionConfig(start_fraction=0.0),
    optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
)
flat = pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.1)], ids=["plain", "flat"])


def images() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(64) % 3
    inputs = 100 + 20 * torch.randn(64, 2, 8, 8, generator=generator) + 30 * targets.view(-1, 1, 1, 1)
    part = Split(inputs=inputs.clamp(0, 255).byte(), targets=targets)
    return DataSplits(train=part, val=part, test=part, class_names=("a", "b", "c"), feature_names=(), augment=None)


def outputs(config, flatness, posterior=MAP()):
    """Logits of the fitted network, which is what rounding errors of training come out in."""
    data = images()
    fitted = fit(partial(ConvNet, width=4), data, posterior, flatness, config, seed=0)
    return fitted.predict(data.test.inputs[:16], 3).log_probs


@flat
def test_channels_last_gives_the_same_network(flatness):
    expected = outputs(SHORT, flatness)
    torch.testing.assert_close(
        outputs(SHORT.with_options(precision={"channels_last": True}), flatness), expected, rtol=0, atol=2e-4
    )


def test_channels_last_reaches_weights_and_is_right_for_drawn_weights_too():
    fitted = fit(
        partial(ConvNet, width=4),
        images(),
        SWAG(rank=2),
        SAM(),
        SHORT.with_options(precision={"channels_last": True}),
        seed=0,
    )
    weight = next(p for p in fitted.states[0].model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    config = replace(SHORT, optimizer=partial(torch.optim.Adam, lr=0.01))
    expected = outputs(config, SAM(), SGVB())
    torch.testing.assert_close(
        outputs(config.with_options(precision={"channels_last": True}), SAM(), SGVB()), expected, rtol=0, atol=2e-3
    )


@flat
def test_lower_precision_is_near_full_precision(flatness):
    expected = outputs(SHORT, flatness).exp()
    assert (
        outputs(SHORT.with_options(precision={"mode": "bf16-mixed"}), flatness).exp() - expected
    ).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@flat
def test_a_compiled_network_is_trained_alike(flatness):
    expected = outputs(SHORT, flatness)
    torch.testing.assert_close(
        outputs(SHORT.with_options(precision={"compile": True}), flatness), expected, rtol=0, atol=1e-3
    )


def started(model, config=SHORT) -> Engine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Engine.create(Fabric(accelerator="cpu", precision=config.precision.mode), model, optimizer, config)


def test_full_precision_on_one_device_calls_the_network_itself():
    model = nn.Linear(3, 2)
    engine = started(model)
    assert engine.fabric is None
    assert engine.network is model
    assert started(nn.Linear(3, 2), SHORT.with_options(precision={"mode": "bf16-mixed"})).fabric is not None


@pytest.mark.parametrize("mode", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_one_device_is_that_of_fabric(mode, accelerator):
    config = SHORT.with_options(precision={"mode": mode}, distribution={"accelerator": accelerator})
    made, expected = make_fabric(config), Fabric(accelerator="cpu", devices=1, precision=mode)
    assert isinstance(made, SingleDevice) == (mode in FULL_PRECISIONS)
    assert (made.device, made.global_rank, made.world_size) == (expected.device, 0, 1)
    model, tensor = nn.Linear(3, 2), torch.ones(2)
    assert made.to_device(model) is expected.to_device(model) is model
    assert made.to_device(tensor) is expected.to_device(tensor) is tensor


@pytest.mark.parametrize("present", ["cuda", "mps", "xpu", None])
@pytest.mark.parametrize("name", ["auto", "gpu", "cuda", "mps", "cpu"])
def test_the_first_device_of_an_accelerator(monkeypatch, name, present):
    monkeypatch.setattr(launch, "find_accelerator", lambda: present)
    kind = present if name in ("auto", "gpu") else name
    expected = torch.device(kind, 0) if kind in ("cuda", "mps") else torch.device("cpu")
    assert launch.find_first_device(name) == expected


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_zeroed_taken_and_clipped(precision):
    model = nn.Linear(3, 2)
    engine = started(model, SHORT.with_options(precision={"mode": precision}))
    engine.backward(engine.network(torch.ones(4, 3)).square().sum() * 100)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) > 2
    engine.clip_gradients(2.0)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() == pytest.approx(2.0, rel=1e-5)
    engine.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6, float("inf")])
def test_clipping_is_that_of_torch(max_norm):
    ours, theirs = ([nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 3))] for _ in range(2))
    for params in (ours, theirs):
        for k, param in enumerate(params):
            param.grad = torch.arange(param.numel(), dtype=torch.float32).view(param.shape) + k
    clip_gradient_norm(tuple(ours), max_norm)
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    clip_gradient_norm((nn.Parameter(torch.zeros(2)),), max_norm)  # nothing to clip
