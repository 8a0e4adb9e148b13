import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    ASAM,
    MSAM,
    SAM,
    SWAG,
    Categorical,
    Course,
    Every,
    FittedPosterior,
    LookSAM,
    Plain,
    Smoothing,
)

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")

from flatbayes.integrations.lightning import FlatCallback  # noqa: E402

BATCHES, SIZE = 6, 8


def data():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(BATCHES * SIZE, 5, generator=generator), torch.arange(BATCHES * SIZE) % 3
    return x + F.one_hot(y, 5), y


def loader(batch_size=SIZE):
    # With a generator of its own, reading takes nothing from the random numbers of training.
    return DataLoader(TensorDataset(*data()), batch_size=batch_size, generator=torch.Generator())


class Module(lightning.LightningModule):
    """What a user has: it knows nothing of flatbayes."""

    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        )
        self.accuracy = torchmetrics.MeanMetric()
        self.collection = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric()})
        self.losses, self.calls = [], 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        outputs = self(x)
        loss = F.cross_entropy(outputs, y)
        self.calls += 1
        self.accuracy.update((outputs.argmax(-1) == y).float())
        self.collection(loss.detach())
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log_dict({"examples": float(len(x))}, on_step=False, on_epoch=True, reduce_fx=torch.sum)
        return {"loss": loss, "x": x}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])

    def on_train_epoch_start(self):
        torch.manual_seed(100 + self.current_epoch)  # Lightning's checkpoints do not hold the random state

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(*callbacks, epochs=3, **options):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **(settings | options))


def fitted(flatness, *, batch_size=SIZE, dropout=0.3, swag=None, callback=None, **options):
    module = Module(dropout)
    callback = callback or FlatCallback(flatness, swag, collect_from=0.5, collect_per_epoch=2)
    run = trainer(callback, **options)
    run.fit(module, loader(batch_size))
    return module, callback, run


def by_hand(flatness, *, accumulate=1, epochs=3, clip=None, bf16=False, swag=None, batch_size=SIZE):
    """The same training in a loop of one's own."""
    module = Module()
    net, (x, y) = module.net, data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    steps_per_epoch = math.ceil(BATCHES / accumulate)
    course = Course(total_steps=epochs * steps_per_epoch)
    state = None if swag is None else swag.init(net, None, len(x))
    for epoch in range(epochs):
        torch.manual_seed(100 + epoch)
        parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        for k in range(0, len(parts), accumulate):

            def closure(now=parts[k : k + accumulate]):
                optimizer.zero_grad()
                total = torch.zeros(())
                for inputs, targets in now:
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                        loss = F.cross_entropy(net(inputs), targets) / accumulate
                    loss.backward()
                    total += loss.detach()
                return total

            flatness(closure, net, course)()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            schedule.step()
            course.advance()
            done = course.step / course.total_steps
            if swag is not None and done > 0.5 and (k // accumulate + 1) % (steps_per_epoch // 2) == 0:
                swag.collect(state)
    return net, state, course


def assert_equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(
    "flatness",
    [
        SAM(rho=0.2),
        SAM(rho=0.2, ascent_steps=2),
        SAM(rho=0.2, params="norms"),
        ASAM(rho=0.5),
        LookSAM(rho=0.2, every=2),
        Every(SAM(rho=0.2), steps=2),
        Plain(),
    ],
    ids=repr,
)
def test_equals_a_loop_of_ones_own(flatness, accumulate):
    module, callback, _ = fitted(flatness, accumulate_grad_batches=accumulate)
    net, _, course = by_hand(flatness, accumulate=accumulate)
    assert_equal(module.net, net)
    assert callback.state_dict()["course"]["step"] == course.step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fresh_noise_goes_on(accumulate):
    flatness = SAM(rho=0.2, fresh_noise=True)
    module, *_ = fitted(flatness, accumulate_grad_batches=accumulate)
    assert_equal(module.net, by_hand(flatness, accumulate=accumulate)[0])


@pytest.mark.parametrize("flatness", [MSAM(rho=0.2), Smoothing(std=0.01), SAM(rho=0.2, part=0.5)], ids=repr)
def test_flatness_that_begins_elsewhere(flatness):
    module, *_ = fitted(flatness)
    assert_equal(module.net, by_hand(flatness)[0])
    with pytest.raises(RuntimeError, match="accumulate_grad_batches=1"):
        fitted(flatness, accumulate_grad_batches=2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clips_the_final_gradient(accumulate):
    module, *_ = fitted(SAM(rho=0.2), accumulate_grad_batches=accumulate, gradient_clip_val=0.05)
    assert_equal(module.net, by_hand(SAM(rho=0.2), accumulate=accumulate, clip=0.05)[0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16(accumulate):
    module, *_ = fitted(SAM(rho=0.2), accumulate_grad_batches=accumulate, precision="bf16-mixed")
    assert_equal(module.net, by_hand(SAM(rho=0.2), accumulate=accumulate, bf16=True)[0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_plain_changes_nothing(accumulate):
    module, _, run = fitted(Plain(), accumulate_grad_batches=accumulate)
    alone = Module()
    other = trainer(accumulate_grad_batches=accumulate)
    other.fit(alone, loader())
    assert_equal(module, alone)
    assert module.calls == alone.calls
    assert run.callback_metrics == other.callback_metrics
    assert run.global_step == other.global_step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_counts_once(accumulate):
    """With a radius of zero the second pass is the first: everything that counts must count as if it were not there."""
    flat, _, run = fitted(SAM(rho=0.0), accumulate_grad_batches=accumulate)
    plain, _, other = fitted(Plain(), accumulate_grad_batches=accumulate)
    assert flat.calls == 2 * plain.calls
    assert_equal(flat, plain)
    assert run.callback_metrics == other.callback_metrics
    assert run.callback_metrics["examples"] == BATCHES * SIZE
    assert flat.losses == plain.losses
    assert flat.collection["mean"].update_count == plain.collection["mean"].update_count == 3 * BATCHES
    assert flat.collection["mean"].compute() == plain.collection["mean"].compute()


def test_metrics_are_those_of_the_first_pass():
    first, _, run = fitted(SAM(rho=5.0), epochs=1, dropout=0.0)
    other, _, again = fitted(Plain(), epochs=1, dropout=0.0)
    assert first.losses[0] == other.losses[0]
    assert run.callback_metrics["examples"] == again.callback_metrics["examples"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_swag_equals_a_loop_of_ones_own(accumulate):
    swag = SWAG(rank=3)
    module, callback, _ = fitted(SAM(rho=0.2), swag=swag, accumulate_grad_batches=accumulate, epochs=4)
    net, state, _ = by_hand(SAM(rho=0.2), swag=swag, accumulate=accumulate, epochs=4) if accumulate == 1 else (
        None, None, None)
    found = callback.state_dict()["statistics"]
    assert found["count"] == 4
    if accumulate == 1:
        for name, tensor in state.statistics.items():
            assert torch.equal(found[name], tensor)
