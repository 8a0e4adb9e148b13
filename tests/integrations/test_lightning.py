import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from flatbayes import (
    ASAM,
    MSAM,
    SAM,
    SWAG,
    WSAM,
    Bernoulli,
    Categorical,
    DenseCategorical,
    FittedPosterior,
    FriendlySAM,
    Gaussian,
    GaussianSmoothing,
    LookSAM,
    Periodic,
    Plain,
    TrainingProgress,
)
from flatbayes.training.trial import NetworkWarning
from support import LIGHTNING_WARNINGS, alternating_params

pytestmark = LIGHTNING_WARNINGS

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")

from flatbayes.integrations.lightning import FlatCallback  # noqa: E402
from flatbayes.integrations.lightning_steps import check_supported  # noqa: E402

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
        self.losses.append(outputs.get("loss"))

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
    callback = callback or FlatCallback(flatness, swag, start_fraction=0.5, snapshots_per_epoch=2)
    run = trainer(callback, **options)
    run.fit(module, loader(batch_size))
    return module, callback, run


def by_hand(flatness, *, accumulate=1, epochs=3, clip=None, bf16=False, scaler=None, swag=None, batch_size=SIZE):
    """The same training in a loop of one's own."""
    low = torch.bfloat16 if bf16 else torch.float16
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    module = Module()
    net, (x, y) = module.net, data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    steps_per_epoch = math.ceil(BATCHES / accumulate)
    course = TrainingProgress(total_steps=epochs * steps_per_epoch)
    state = None if swag is None else swag.init(net, None, len(x))
    for epoch in range(epochs):
        torch.manual_seed(100 + epoch)
        parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        for k in range(0, len(parts), accumulate):

            def closure(now=parts[k : k + accumulate]):
                optimizer.zero_grad()
                total = torch.zeros(())
                for inputs, targets in now:
                    with torch.autocast("cpu", low, enabled=bf16 or scaler.is_enabled(), cache_enabled=False):
                        loss = F.cross_entropy(net(inputs), targets) / accumulate
                    scaler.scale(loss).backward()
                    total += loss.detach()
                return total

            flatness(closure, net, course)()
            scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
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


FLATNESSES = [
    SAM(rho=0.2),
    SAM(rho=0.2, ascent_steps=2),
    SAM(rho=0.2, params="norms"),
    ASAM(rho=0.5),
    LookSAM(rho=0.2, period=2),
    WSAM(rho=0.2),
    FriendlySAM(rho=0.2),
    Periodic(SAM(rho=0.2), period=2),
    Plain(),
]


@pytest.mark.parametrize(("flatness", "accumulate"), alternating_params(FLATNESSES, [1, 4]), ids=repr)
def test_equals_a_loop_of_ones_own(flatness, accumulate):
    module, callback, _ = fitted(flatness, accumulate_grad_batches=accumulate)
    net, _, course = by_hand(flatness, accumulate=accumulate)
    assert_equal(module.net, net)
    assert callback.state_dict()["progress"]["step"] == course.step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fresh_noise_goes_on(accumulate):
    flatness = SAM(rho=0.2, resample_noise=True)
    module, *_ = fitted(flatness, accumulate_grad_batches=accumulate)
    assert_equal(module.net, by_hand(flatness, accumulate=accumulate)[0])


@pytest.mark.parametrize(
    "flatness", [MSAM(rho=0.2), GaussianSmoothing(std=0.01), SAM(rho=0.2, ascent_batch_fraction=0.5)], ids=repr
)
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


@pytest.mark.filterwarnings(r"ignore:Detected call of `lr_scheduler.step\(\)` before:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fp16_with_a_scaler(accumulate):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)  # the first steps overflow

    plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler())
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5, "plugins": [plugin]}
    module, *_ = fitted(SAM(rho=0.2), **options)
    own = scaler()
    assert_equal(module.net, by_hand(SAM(rho=0.2), accumulate=accumulate, clip=0.5, scaler=own)[0])
    assert plugin.scaler.get_scale() == own.get_scale()


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
    """With a radius of zero the second pass is the first, and nothing may count it."""
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


def test_swag_equals_a_loop_of_ones_own():
    swag = SWAG(rank=3)
    module, callback, _ = fitted(SAM(rho=0.2), swag=swag, epochs=4)
    net, state, _ = by_hand(SAM(rho=0.2), swag=swag, epochs=4)
    assert_equal(module.net, net)
    found = callback.state_dict()["statistics"]
    assert found["count"] == 4
    for name, tensor in state.statistics.items():
        assert torch.equal(found[name], tensor)


class UnseededModule(Module):
    """Dropout goes on with the random numbers of the epoch before."""

    def on_train_epoch_start(self):
        pass


@pytest.mark.parametrize("has_validation", [False, True])
def test_dropout_and_the_order_of_a_shuffled_loader_resume_bit_for_bit(has_validation, tmp_path):
    class Saver(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class Validated(UnseededModule):
        def validation_step(self, batch, batch_idx):
            torch.rand(3)

    def train(**options):
        module = Validated() if has_validation else UnseededModule()
        torch.manual_seed(5 if options else 4)
        shuffled = DataLoader(TensorDataset(*data()), batch_size=SIZE, shuffle=True)
        callback = FlatCallback(SAM(rho=0.2))
        loaders = (shuffled, loader()) if has_validation else (shuffled,)
        trainer(callback, Saver(), epochs=4).fit(module, *loaders, **options)
        return module

    whole, resumed = train(), train(ckpt_path=tmp_path / "1.ckpt", weights_only=True)
    assert resumed.calls < whole.calls
    assert_equal(resumed, whole)


@pytest.mark.parametrize(("accumulate", "flatness"), [(1, SAM(rho=0.2)), (2, SAM(rho=0.2)), (1, MSAM(rho=0.2))])
def test_resumes_bit_for_bit(accumulate, flatness, tmp_path):
    class Saver(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def followed():
        callback = FlatCallback(flatness, SWAG(rank=3), start_fraction=0.3, snapshots_per_epoch=1)
        return callback, trainer(callback, Saver(), epochs=4, accumulate_grad_batches=accumulate)

    (one, whole), (other, rest) = followed(), followed()
    module, resumed = Module(), Module()
    whole.fit(module, loader())
    rest.fit(resumed, loader(), ckpt_path=tmp_path / "1.ckpt", weights_only=True)
    assert rest.global_step == whole.global_step
    assert resumed.calls < module.calls
    assert_equal(resumed, module)
    ours, theirs = one.state_dict(), other.state_dict()
    assert torch.equal(ours["random_state"]["cpu"], theirs["random_state"]["cpu"])
    assert ours["statistics"]["count"] == 3  # one of them before the checkpoint
    for name, tensor in ours["statistics"].items():
        assert torch.equal(theirs["statistics"][name], tensor)
    assert ours["progress"]["step"] == theirs["progress"]["step"]
    assert ours["progress"]["flatness_state"].keys() == theirs["progress"]["flatness_state"].keys()


def test_fits_once_more():
    module, callback, run = fitted(SAM(rho=0.2), swag=SWAG(rank=2), epochs=2)
    run.fit_loop.max_epochs = 4
    run.fit(module, loader())
    assert callback.state_dict()["progress"]["step"] == run.global_step == 4 * BATCHES
    assert callback.state_dict()["progress"]["total_steps"] == 4 * BATCHES


def test_posterior_predicts_saves_and_loads(tmp_path):
    module, callback, _ = fitted(SAM(rho=0.05), swag=SWAG(rank=2), epochs=4)
    x, _ = data()
    posterior = callback.make_posterior(Categorical(3), statistics_inputs=x.split(16))
    predictive = posterior.predict(x, num_draws=3)
    assert posterior.states[0].num_data == len(x)
    again = FittedPosterior.load(posterior.save(tmp_path), Module())
    assert torch.equal(again.predict(x, num_draws=3).log_probs, predictive.log_probs)
    with torch.no_grad():
        module.net[0].weight.zero_()
    assert torch.equal(posterior.predict(x, num_draws=3).log_probs, predictive.log_probs)


@pytest.mark.parametrize(
    ("options", "limits", "expected"),
    [
        ({"sampler": SubsetRandomSampler(range(20))}, {}, 20),
        ({"drop_last": True, "sampler": SubsetRandomSampler(range(20))}, {}, 16),
        ({"batch_sampler": [[0, 1, 2], [3, 4, 5, 6]], "batch_size": 1}, {}, 7),
        ({}, {"limit_train_batches": 2}, 2 * SIZE),
    ],
)
def test_num_data_is_what_an_epoch_gives(options, limits, expected):
    callback = FlatCallback(Plain(), SWAG(rank=2), start_fraction=0.0, snapshots_per_epoch=2)
    loader = DataLoader(TensorDataset(*data()), **({"batch_size": SIZE} | options))
    trainer(callback, epochs=1, **limits).fit(Module(), loader)
    assert callback.make_posterior(Categorical(3)).states[0].num_data == expected


def test_posterior_of_a_submodule_and_some_parameters(tmp_path):
    callback = FlatCallback(SAM(rho=0.05), SWAG(rank=2), start_fraction=0.2, params=["4.*"], network="net")
    module, *_ = fitted(None, callback=callback)
    posterior = callback.make_posterior(Categorical(3), statistics_inputs=data()[0].split(16))
    assert len(posterior.states[0].statistics["mean"]) == 16 * 3 + 3
    assert [name for name, p in posterior.states[0].model.named_parameters() if p.requires_grad] == [
        "4.weight",
        "4.bias",
    ]
    assert all(param.requires_grad for param in module.parameters())
    assert torch.equal(posterior.states[0].model[0].weight, module.net[0].weight)
    network = Module().net.requires_grad_(False)
    network[4].requires_grad_(True)
    again = FittedPosterior.load(posterior.save(tmp_path), network)
    x, _ = data()
    assert torch.equal(again.predict(x, num_draws=3).log_probs, posterior.predict(x, num_draws=3).log_probs)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (Categorical(4), r"\(1, 3\), but there are 4 classes"),
        (Categorical(2, single_logit=True), r"\(1, 3\), but there is one logit for two classes"),
        (Bernoulli(2), r"\(1, 3\), but there are 2 labels"),
        (Gaussian(), r"\(1, 3\), but there is a mean and a raw scale to predict for 1 target"),
        (DenseCategorical(3), r"\(1, 3\), and \(batch, 3, \*positions\) is expected"),
    ],
)
def test_a_likelihood_of_other_outputs_is_refused_before_the_first_prediction(likelihood, message):
    _, callback, _ = fitted(SAM(rho=0.05))
    with pytest.raises(ValueError, match=f"outputs of shape {message}"):
        callback.make_posterior(likelihood)
    callback.make_posterior(Categorical(3), transform=lambda x: 2 * x)


def test_the_trained_network_alone():
    module, callback, _ = fitted(SAM(rho=0.05))
    x, _ = data()
    module.eval()
    with torch.no_grad():
        outputs = module(x).double().log_softmax(-1)
    assert torch.allclose(callback.make_posterior(Categorical(3)).predict(x).log_probs, outputs, atol=1e-6)


def test_the_module_is_given_back():
    module, *_ = fitted(SAM(rho=0.05), epochs=1)
    assert not {"training_step", "optimizer_step", "log", "log_dict"} & vars(module).keys()
    pickle.dumps(module)
    copy.deepcopy(module)


class Unfreezing(lightning.Callback):
    """Gradual unfreezing."""

    def on_fit_start(self, trainer, module):
        module.net[0].requires_grad_(False)

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.net[0].requires_grad_(True)


def test_parameters_that_are_unfrozen_in_training_are_refused():
    flat = FlatCallback(SAM(), SWAG(rank=2))
    with pytest.raises(ValueError, match=r"unfrozen or added: \['net.0.weight', 'net.0.bias'\]"):
        trainer(Unfreezing(), flat).fit(Module(), loader())


def test_names_and_likelihoods_that_are_none_are_refused_in_words():
    with pytest.raises(ValueError, match=r"network='nets' is no submodule of Module\. Did you mean net\?"):
        trainer(FlatCallback(SAM(), network="nets"), epochs=1).fit(Module(), loader())
    callback = FlatCallback(SAM())
    trainer(callback, epochs=1).fit(Module(), loader())
    with pytest.raises(TypeError, match="likelihood must be an instance such as Categorical"):
        callback.make_posterior("categorical")


def test_trained_weights_of_low_precision_give_a_warning():
    module = Module()
    module.net.bfloat16()
    module.forward = lambda x: module.net(x.bfloat16()).float()
    with pytest.warns(NetworkWarning, match="are bfloat16.*use precision='bf16-mixed' where"):
        trainer(FlatCallback(SAM()), epochs=1).fit(module, loader())


class Failing(Module):
    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        if self.calls == 4:
            raise ArithmeticError("on purpose")
        return output


def test_the_module_is_given_back_after_an_exception():
    module, twin = Failing(), Module()
    with pytest.raises(ArithmeticError, match="on purpose"):
        trainer(FlatCallback(SAM(rho=0.5)), epochs=1).fit(module, loader())  # in the second pass of the second step
    assert not {"training_step", "optimizer_step", "log", "log_dict"} & vars(module).keys()
    trainer(FlatCallback(SAM(rho=0.5)), epochs=1, max_steps=1).fit(twin, loader())
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    assert module.collection["mean"].update_count == 2


class Skipping(Module):
    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 else output


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_may_be_skipped(accumulate):
    found = []
    for flatness in (SAM(rho=0.0), Plain()):
        module = Skipping()
        trainer(FlatCallback(flatness), accumulate_grad_batches=accumulate).fit(module, loader())
        found.append(module)
    assert_equal(*found)


class ByHand(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class WithoutOptimizer(Module):
    def configure_optimizers(self):
        return None


class Alone(lightning.LightningModule):
    """A module that the tests of batches derive from: `take` gets inputs and targets out of the batch."""

    take = staticmethod(lambda batch: (batch["x"], batch["y"]))

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(5, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = self.take(batch)
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def change_in_place(batch):
    batch["x"] -= batch["x"].mean()
    batch["x"][:, 0] = 0
    return batch["x"], batch["y"]


def change_list(batch):
    inputs = batch["pair"][0]
    return inputs.mul_(2.0), batch["pair"].pop()


def select_pair(batch):
    return 2.0 * batch["pair"][0], batch["pair"][1]


def select_centred(batch):
    x = batch["x"] - batch["x"].mean()
    return x * (torch.arange(5) > 0), batch["y"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("apart", "intact"),
    [
        (lambda batch: (batch["x"], batch.pop("y")), Alone.take),
        (change_in_place, select_centred),
        (change_list, select_pair),
    ],
    ids=["pop", "in place", "nested"],
)
def test_training_step_may_take_its_batch_apart(apart, intact, accumulate):
    weights = []
    for take in (apart, intact):
        module = Alone()
        module.take = take
        x, y = data()
        examples = [{"x": x[i], "y": y[i], "pair": [x[i], y[i]]} for i in range(len(x))]
        flat = FlatCallback(SAM(rho=0.2, ascent_steps=2))
        trainer(flat, epochs=1, accumulate_grad_batches=accumulate).fit(module, DataLoader(examples, SIZE))
        weights.append(module.net.weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("batch", [iter([1]), {"x": (i for i in range(2))}, [zip([1], [2], strict=True)]], ids=type)
def test_batches_of_iterators_are_refused(batch):
    module = Alone()
    before = module.net.weight.detach().clone()
    loader_of_one = DataLoader([0], collate_fn=lambda _: batch)
    with pytest.raises(ValueError, match="iterator"):
        trainer(FlatCallback(SAM()), epochs=1).fit(module, loader_of_one)
    assert torch.equal(module.net.weight, before)


def test_a_batch_that_cannot_be_copied_is_used_itself():
    class Locked(dict):
        def __deepcopy__(self, memo):
            raise TypeError("cannot be copied")

    x, y = data()
    module = Alone()
    trainer(FlatCallback(SAM()), epochs=1).fit(module, DataLoader([0], collate_fn=lambda _: Locked(x=x, y=y)))
    assert not torch.equal(module.net.weight, Alone().net.weight)


@pytest.mark.parametrize("epochs", [1, 3])
def test_defaults_collect_enough_in_a_short_training(epochs):
    callback = FlatCallback(SAM(), SWAG(rank=2))
    trainer(callback, epochs=epochs).fit(
        Alone(), DataLoader([{"x": x, "y": y} for x, y in zip(*data(), strict=True)], 4)
    )
    assert callback.state_dict()["statistics"]["count"] >= 3
    assert callback.make_posterior(Categorical(3)).predict(data()[0], 3).entropy.isfinite().all()


class HeadModule(Module):
    """The optimizer has the last layer only."""

    def __init__(self, *, freeze):
        super().__init__()
        self.net[:4].requires_grad_(not freeze)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[4].parameters(), lr=0.1, momentum=0.9)


ASCENTS = [SAM(0.1), ASAM(0.5), LookSAM(0.1, period=2), Periodic(SAM(0.1), 2)]


@pytest.mark.parametrize(
    ("flatness", "accumulate"),
    [
        *((flatness, steps) for flatness in ASCENTS for steps in (1, 2)),
        (MSAM(0.1), 1),
        (GaussianSmoothing(0.05), 1),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_an_optimizer_of_a_part_trains_as_if_the_rest_were_frozen(flatness, accumulate):
    partial, frozen = HeadModule(freeze=False), HeadModule(freeze=True)
    initial = copy.deepcopy(partial.net[0].state_dict())
    for module in (partial, frozen):
        torch.manual_seed(0)  # the seed of the noise
        callback = FlatCallback(flatness, SWAG(rank=2), start_fraction=0.0)
        trainer(callback, epochs=2, accumulate_grad_batches=accumulate).fit(module, loader())
    for name, values in frozen.state_dict().items():
        torch.testing.assert_close(partial.state_dict()[name], values, rtol=0, atol=1e-6)
    for name, values in initial.items():
        assert torch.equal(partial.net[0].state_dict()[name], values)
    assert all(param.requires_grad for param in partial.parameters())


def test_too_few_snapshots_are_refused_before_the_first_step():
    module = Alone()
    before = module.net.weight.detach().clone()
    examples = DataLoader([{"x": x, "y": y} for x, y in zip(*data(), strict=True)], SIZE)
    for options in ({"max_steps": 2}, {"limit_train_batches": 1}):
        with pytest.raises(ValueError, match=r"at least 2 collected snapshots.*start_fraction \(now 0.7\)"):
            trainer(FlatCallback(SAM(), SWAG()), epochs=1, **options).fit(module, examples)
    with pytest.raises(ValueError, match=r"snapshots_per_epoch \(now 1\)"):
        trainer(FlatCallback(SAM(), SWAG(), snapshots_per_epoch=1), epochs=3).fit(module, examples)
    assert torch.equal(module.net.weight, before)
    callback = FlatCallback(SAM(), SWAG())
    trainer(callback, fast_dev_run=True).fit(module, examples)  # tries out the code only
    with pytest.raises(RuntimeError, match="has collected 1 by step 1 of 1"):
        callback.make_posterior(Categorical(3))


def test_modules_of_the_package_pytorch_lightning():
    package = pytest.importorskip("pytorch_lightning")
    theirs = type("Theirs", (package.LightningModule,), {k: v for k, v in vars(Alone).items() if k != "__init__"})
    module = theirs()
    module.net = copy.deepcopy(Alone().net)
    examples = DataLoader([{"x": x, "y": y} for x, y in zip(*data(), strict=True)], SIZE)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for strategy in ("auto", package.strategies.SingleDeviceStrategy("cpu")):
        callback = FlatCallback(SAM(rho=0.2), SWAG(rank=2))
        run = package.Trainer(
            max_epochs=2, callbacks=[callback], strategy=strategy, enable_model_summary=False, **options
        )
        run.fit(module, examples)
    assert callback.make_posterior(Categorical(3)).predict(data()[0], 3).entropy.isfinite().all()
    ours = Alone()
    for _ in range(2):
        trainer(FlatCallback(SAM(rho=0.2)), epochs=2).fit(ours, examples)
    assert torch.equal(ours.net.weight, module.net.weight)


def test_strategies_that_shard_the_weights_are_refused():
    names = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")
    classes = [getattr(lightning.strategies, name) for name in names]
    for strategy in classes:
        run = SimpleNamespace(strategy=object.__new__(strategy))
        with pytest.raises(ValueError, match="may shard the weights"):
            check_supported(run, Alone())


def test_refuses():
    with pytest.raises(ValueError, match="manual optimization"):
        trainer(FlatCallback(SAM())).fit(ByHand(), loader())
    with (
        pytest.warns(UserWarning, match="will run with no optimizer"),
        pytest.raises(ValueError, match="configure_optimizers of WithoutOptimizer returns no optimizer"),
    ):
        trainer(FlatCallback(SAM())).fit(WithoutOptimizer(), loader())
    with pytest.raises(ValueError, match="prior is given twice"):
        fitted(SAM(), swag=SWAG(prior_precision=1.0), epochs=3)
    with pytest.raises(TypeError, match="'swag': it was renamed to posterior"):
        FlatCallback(SAM(), swag=SWAG())
    with pytest.raises(ValueError, match="snapshots_per_epoch must be"):
        FlatCallback(SAM(), SWAG(), snapshots_per_epoch=0)
    with pytest.raises(ValueError, match="max_steps"):
        fitted(SAM(), swag=SWAG(), epochs=-1)
    with pytest.raises(RuntimeError, match="before training"):
        FlatCallback(SAM()).make_posterior(Categorical(3))
    with pytest.raises(ValueError, match="num_data"):
        stream = DataLoader(list(zip(*data(), strict=True)), batch_size=SIZE)
        stream = (batch for batch in stream)
        trainer(FlatCallback(SAM(), SWAG()), epochs=1, max_steps=3).fit(Module(), stream)


def search_learning_rate(tuner, module):
    tuner.lr_find(module, loader(), num_training=BATCHES, min_lr=1e-4, max_lr=1e-3, attr_name="rate")


def search_batch_size(tuner, module):
    tuner.scale_batch_size(module, max_trials=1, steps_per_trial=2, init_val=4)


class SearchedModule(Module):
    def __init__(self):
        super().__init__()
        self.rate, self.batch_size = 0.1, SIZE

    def train_dataloader(self):
        return loader(self.batch_size)

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def val_dataloader(self):
        return loader(self.batch_size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("search", [search_learning_rate, search_batch_size])
def test_a_search_before_or_after_training_takes_plain_steps(search, tmp_path):
    callback, module = FlatCallback(SAM(rho=0.1), posterior=SWAG(rank=2)), SearchedModule()
    run = trainer(callback, epochs=3, default_root_dir=tmp_path)
    tuner = lightning.tuner.Tuner(run)
    search(tuner, module)
    module.batch_size = SIZE
    run.fit(module, loader())
    state, step = callback._tracker.steps.state, callback._tracker.progress.step
    statistics = {name: tensor.clone() for name, tensor in state.statistics.items()}
    assert step == 3 * BATCHES
    search(tuner, module)
    assert callback._tracker.progress.step == step
    for name, tensor in callback._tracker.steps.state.statistics.items():
        assert torch.equal(tensor, statistics[name])
