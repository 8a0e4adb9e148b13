"""Buffers that a forward pass changes: those outside the state dict, and those that it creates or resizes."""

import pytest
import torch
from torch import nn

from flatbayes.core.buffers import list_buffers, preserve_buffers
from flatbayes.core.networks import load_tensors
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG
from flatbayes.training import Callback, Checkpoints, CollectionConfig, TrainingConfig, fit


class Changing(nn.Module):
    """A scale that is not persistent, a cache from the first pass, a memory that grows, a start that is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("cache", None)
        self.register_buffer("history", torch.zeros(0))
        self.register_buffer("start", torch.zeros(2))

    def forward(self, x):
        if self.training:
            self.scale += 0.05
            self.cache = x.mean(0).detach()
            self.history = torch.cat([self.history, x[:1, 0].detach()])
            self.start = None
        return self.last(self.first(x).relu() * self.scale)


def build():
    torch.manual_seed(0)
    return Changing()


def make_data():
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step, loss, lr):
        if step == self.step:
            raise ConnectionError("the plug was pulled")


@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=2)], ids=lambda posterior: type(posterior).__name__)
def test_a_stopped_training_goes_on_with_them(posterior, tmp_path):
    config = TrainingConfig(
        epochs=4, batch_size=16, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2)
    )
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0)
    x, y = make_data()

    def train(**options):
        return fit(build, (x, y), posterior, SAM(), config, likelihood=Categorical(3), **options)

    expected = train()
    with pytest.raises(ConnectionError):
        train(checkpoints=checkpoints, callback=Stop(8))
    fitted = train(checkpoints=checkpoints)
    assert torch.equal(fitted.predict(x, 3).log_probs, expected.predict(x, 3).log_probs)
    buffers, others = (list_buffers(f.states[0].model) for f in (fitted, expected))
    assert buffers["start"] is None
    assert len(buffers["history"]) == 12
    for name in ("scale", "cache", "history"):
        assert torch.equal(buffers[name], others[name])


def test_early_stopping_goes_back_to_them():
    x, y = make_data()
    labels = torch.randint(3, (48,), generator=torch.Generator().manual_seed(1))  # nothing to learn: it stops early
    config = TrainingConfig(min_epochs=12, min_steps=36, batch_size=16)
    fitted = fit(build, (x, labels), MAP(), SAM(), config, val=(x[:16], y[:16]), likelihood=Categorical(3))
    buffers = list_buffers(fitted.states[0].model)
    steps = len(buffers["history"])
    assert 0 < steps < 36
    torch.testing.assert_close(buffers["scale"], torch.tensor(1.0) + 0.05 * steps)


def test_tensors_of_another_shape_are_loaded():
    network, other = build(), build()
    network(torch.randn(4, 6))
    other.history, other.cache = torch.ones(3), None
    load_tensors(other, dict(network.named_buffers()))
    assert torch.equal(other.history, network.history)
    assert torch.equal(other.cache, network.cache)


def test_buffers_that_are_resized_in_place_are_restored():
    network = build()
    network.history = torch.ones(2)
    with preserve_buffers(network):
        network.history.resize_(3).fill_(5.0)
    assert torch.equal(network.history, torch.ones(2))
