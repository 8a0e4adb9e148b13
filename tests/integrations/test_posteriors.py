"""Every posterior in every loop: the loops of Lightning and transformers take the steps of a loop of one's own."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    IVON,
    LESAM,
    LRT,
    MAP,
    MSAM,
    SAM,
    SGHMC,
    SGLD,
    SGVB,
    SWAG,
    Categorical,
    Delayed,
    Ensemble,
    FittedPosterior,
    Laplace,
    MCDropout,
    Periodic,
    PosteriorSAM,
    TrainingProgress,
)
from flatbayes.core.buffers import set_training_mode
from flatbayes.integrations import join_posteriors
from support import LIGHTNING_WARNINGS

pytestmark = [
    *LIGHTNING_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*estimated from few snapshots:UserWarning"),
]

lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

from flatbayes.integrations.lightning import FlatCallback  # noqa: E402
from flatbayes.integrations.lightning_steps import check_steps  # noqa: E402
from flatbayes.integrations.tracker_config import TrackerConfig  # noqa: E402
from flatbayes.integrations.transformers import FlatTrainer  # noqa: E402

SIZE, BATCHES, EPOCHS = 8, 3, 2
SGD = {"lr": 0.05, "weight_decay": 1e-3}
ADAM = {"lr": 0.01}
CASES = [  # posterior, optimizer and its options
    (MAP(prior_precision=0.1), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (SWAG(rank=2, prior_precision=0.1), torch.optim.SGD, {"lr": 0.05}),
    (SGLD(temperature=0.1), torch.optim.SGD, SGD),
    (SGHMC(temperature=0.1, max_snapshots=4), torch.optim.SGD, SGD),
    (SGVB(initial_std=0.05), torch.optim.Adam, ADAM),
    (SGVB(num_samples=2), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (LRT(initial_std=0.05), torch.optim.Adam, ADAM),
    (Laplace(), torch.optim.SGD, SGD),
    (Laplace(structure="kron", prior_precision=1.0), torch.optim.SGD, {"lr": 0.05}),
    (MCDropout(rate=0.3), torch.optim.SGD, SGD),
    (IVON(beta2=0.9), torch.optim.SGD, SGD),
]


def mark_cases(*fast):
    """All cases, of which some are in the fast suite."""
    return [
        pytest.param(*case, id=repr(case[0]), marks=[] if index in fast else pytest.mark.slow)
        for index, case in enumerate(CASES)
    ]


def make_data():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(BATCHES * SIZE, 5, generator=generator), torch.arange(BATCHES * SIZE) % 3
    return x + F.one_hot(y, 5), y


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)
        )

    def forward(self, x):
        return self.layers(x)


class Module(lightning.LightningModule):
    def __init__(self, optimizer, options):
        super().__init__()
        self.net, self.make_optimizer = Network(), lambda params: optimizer(params, **options)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self):
        torch.manual_seed(100 + self.current_epoch)


class Model(nn.Module):
    """A model in the form of transformers."""

    def __init__(self):
        super().__init__()
        self.net = Network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return transformers.utils.ModelOutput(loss=loss, logits=logits)


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(**x if isinstance(x, dict) else {"x": x}).logits


def make_loader():
    return DataLoader(TensorDataset(*make_data()), SIZE, generator=torch.Generator())


def run_trainer(module, callback, epochs=EPOCHS, *, resume=None, callbacks=(), **options):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback, *callbacks], **(settings | options))
    trainer.fit(module, make_loader(), ckpt_path=resume)
    return trainer


class FixedOrder(FlatTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train_model(
    folder, posterior, optimizer, options, *, flatness=SAM(rho=0.1), resume=None, num_frozen=0, **settings
):
    x, y = make_data()
    model = Model()
    model.net.layers[:num_frozen].requires_grad_(False)
    optimizer = optimizer(model.parameters(), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    defaults = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": SIZE, "save_strategy": "no", "seed": 5}
    defaults |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    trainer = FixedOrder(
        model,
        transformers.TrainingArguments(str(folder), **(defaults | settings)),
        train_dataset=[{"x": x[k], "labels": y[k]} for k in range(len(x))],
        optimizers=(optimizer, schedule),
        flatness=flatness,
        posterior=posterior,
        start_fraction=0.0,
        snapshots_per_epoch=BATCHES,
    )
    trainer.train(resume)
    return trainer


def train_by_hand(
    posterior, make_optimizer, options, *, seeds, clip=None, accelerator=None, flatness=SAM(rho=0.1), num_frozen=0
):
    """The same training with the interface of a posterior."""
    network = Network()
    network.layers[:num_frozen].requires_grad_(False)
    state = posterior.init(network, lambda params: make_optimizer(params, **options), BATCHES * SIZE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(state.optimizer, 0.9)
    progress, (x, y) = TrainingProgress(total_steps=EPOCHS * BATCHES), make_data()
    model, backward = state.model, torch.Tensor.backward
    if accelerator is not None:
        model, state.optimizer = accelerator.prepare(state.model, state.optimizer)
        backward = accelerator.backward
    for epoch in range(EPOCHS):
        seeds(epoch)
        set_training_mode(state.model)
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):

            def closure(inputs=inputs, targets=targets):
                state.optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                backward(loss)
                return loss.detach()

            flat_closure = flatness(closure, state.model, progress)

            def clipped(flat_closure=flat_closure):
                loss = flat_closure()
                if clip is not None:
                    nn.utils.clip_grad_norm_(state.model.parameters(), clip)
                return loss

            posterior.step(state, clipped)
            posterior.collect(state)
            schedule.step()
            progress.advance()
    return state


def seed_as_trainer(epoch):
    if epoch == 0:
        Network()
        transformers.set_seed(5)
    torch.empty((), dtype=torch.int64).random_()  # what the iterator of a DataLoader takes


FROZEN_CASES = [(SWAG(rank=2), torch.optim.SGD, {"lr": 0.05}), (LRT(initial_std=0.05), torch.optim.Adam, ADAM)]
in_frozen_cases = pytest.mark.parametrize(("posterior", "optimizer", "options"), FROZEN_CASES, ids=str)


def check_frozen(state, expected, *, prefix):
    assert_same(state, expected, prefix=prefix)
    assert torch.equal(state.model.state_dict()[f"{prefix}layers.1.running_mean"], torch.zeros(12))
    assert all(module.training is state.model.training for module in state.model.modules())


@in_frozen_cases
def test_lightning_keeps_the_statistics_of_frozen_norms(posterior, optimizer, options):
    callback = FlatCallback(SAM(rho=0.1), posterior, start_fraction=0.0, snapshots_per_epoch=BATCHES, network="net")
    module = Module(optimizer, options)
    module.net.layers[:2].requires_grad_(False)
    run_trainer(module, callback)
    expected = train_by_hand(
        posterior, optimizer, options, seeds=lambda epoch: torch.manual_seed(100 + epoch), num_frozen=2
    )
    check_frozen(callback._tracker.steps.state, expected, prefix="")


@in_frozen_cases
def test_transformers_keep_the_statistics_of_frozen_norms(posterior, optimizer, options, tmp_path):
    trainer = train_model(tmp_path, posterior, optimizer, options, num_frozen=2)
    expected = train_by_hand(posterior, optimizer, options, seeds=seed_as_trainer, clip=1.0, num_frozen=2)
    check_frozen(trainer._tracker.steps.state, expected, prefix="net.")


def assert_same(state, expected, *, prefix):
    own, theirs = state.model.state_dict(), expected.model.state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(own[f"{prefix}{name}"], tensor, rtol=0, atol=0)
    for tensor, other in zip(state.statistics.values(), expected.statistics.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=0)


def check_fitted(fitted):
    assert "SAM(rho=0.1)" in fitted.summary()
    assert " steps" in fitted.summary()
    check_predictions(fitted)


def check_predictions(fitted):
    predictive = fitted.predict(make_data()[0], num_draws=4)
    assert predictive.entropy.isfinite().all()
    assert (predictive.mutual_information > 1e-9).any() == fitted.posterior.stochastic


@pytest.mark.parametrize(("posterior", "optimizer", "options"), mark_cases(3, 6, 8, 10))
def test_lightning_takes_the_steps_of_a_loop_of_ones_own(posterior, optimizer, options, tmp_path):
    callback = FlatCallback(SAM(rho=0.1), posterior, start_fraction=0.0, snapshots_per_epoch=BATCHES, network="net")
    module = Module(optimizer, options)
    types = [type(child) for child in module.net.modules()]
    run_trainer(module, callback, gradient_clip_val=0.5)
    expected = train_by_hand(
        posterior, optimizer, options, seeds=lambda epoch: torch.manual_seed(100 + epoch), clip=0.5
    )
    assert_same(callback._tracker.steps.state, expected, prefix="")
    assert [type(child) for child in module.net.modules()] == types
    fitted = callback.make_posterior(Categorical(3))
    check_fitted(fitted)
    loaded = FittedPosterior.load(fitted.save(tmp_path), Network())
    x, _ = make_data()
    assert torch.equal(loaded.predict(x, 4).log_probs, fitted.predict(x, 4).log_probs)
    assert [group["params"] for group in callback._tracker.steps.state.optimizer.param_groups] == [
        list(module.parameters())
    ]


@pytest.mark.parametrize(("posterior", "optimizer", "options"), mark_cases(5, 9))
def test_transformers_take_the_steps_of_a_loop_of_ones_own(posterior, optimizer, options, tmp_path):
    trainer = train_model(tmp_path, posterior, optimizer, options, max_grad_norm=0.5)
    expected = train_by_hand(posterior, optimizer, options, seeds=seed_as_trainer, clip=0.5)
    assert_same(trainer._tracker.steps.state, expected, prefix="net.")
    fitted = trainer.make_posterior(Categorical(3), wrap=Wrapper)
    check_fitted(fitted)
    loaded = FittedPosterior.load(fitted.save(tmp_path / "artefact"), Wrapper(Model()))
    x, _ = make_data()
    assert torch.equal(loaded.predict(x, 4).log_probs, fitted.predict(x, 4).log_probs)


@pytest.mark.parametrize("prior_precision", [None, 0.1])
def test_gradients_before_the_step_have_the_distribution_of_swag(prior_precision, tmp_path):
    """Loops that compute the gradient before the step give PosteriorSAM the covariance that the step would."""
    posterior, flatness = SWAG(rank=2, prior_precision=prior_precision), PosteriorSAM(rho=2.0)
    options = {"lr": 0.05, "momentum": 0.9}
    callback = FlatCallback(flatness, posterior, start_fraction=0.0, snapshots_per_epoch=BATCHES, network="net")
    run_trainer(Module(torch.optim.SGD, options), callback)
    seeds = lambda epoch: torch.manual_seed(100 + epoch)  # noqa: E731
    expected = train_by_hand(posterior, torch.optim.SGD, options, seeds=seeds, flatness=flatness)
    assert_same(callback._tracker.steps.state, expected, prefix="")
    trainer = train_model(tmp_path, posterior, torch.optim.SGD, options, flatness=flatness, max_grad_norm=0.0)
    expected = train_by_hand(posterior, torch.optim.SGD, options, seeds=seed_as_trainer, flatness=flatness)
    assert_same(trainer._tracker.steps.state, expected, prefix="net.")
    with pytest.raises(ValueError, match="cannot be restricted afterwards"):
        FlatCallback(flatness, posterior, params=["net.*"])


@pytest.mark.parametrize(("posterior", "optimizer", "options"), CASES, ids=[repr(case[0]) for case in CASES])
def test_the_loop_of_accelerate(posterior, optimizer, options):
    accelerate = pytest.importorskip("accelerate")
    states = []
    for accelerator in (None, accelerate.Accelerator(cpu=True)):
        state = train_by_hand(posterior, optimizer, options, seeds=torch.manual_seed, accelerator=accelerator)
        posterior.finalize(state, [make_data()], F.cross_entropy)
        states.append(state)
    assert_same(*states, prefix="")
    check_predictions(FittedPosterior(posterior, [states[1]], Categorical(3), statistics_inputs=[make_data()[0]]))


RESUMED = [case for index, case in enumerate(mark_cases(4)) if index in (3, 4, 6)]


@pytest.mark.parametrize(("posterior", "optimizer", "options"), RESUMED)
def test_lightning_resumes_bit_for_bit(posterior, optimizer, options, tmp_path):
    def train(epochs, resume=None):
        callback = FlatCallback(SAM(rho=0.1), posterior, start_fraction=0.0, snapshots_per_epoch=3, network="net")
        return run_trainer(Module(optimizer, options), callback, epochs, resume=resume), callback

    whole = train(2)[1]
    train(1)[0].save_checkpoint(tmp_path / "half.ckpt")
    resumed = train(2, tmp_path / "half.ckpt")[1]
    assert_same(resumed._tracker.steps.state, whole._tracker.steps.state, prefix="")


@pytest.mark.parametrize(("posterior", "optimizer", "options"), RESUMED)
def test_transformers_resume_bit_for_bit(posterior, optimizer, options, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    whole = train_model(tmp_path / "one", posterior, optimizer, options, **settings)
    resume = str(tmp_path / "one" / "checkpoint-4")
    again = train_model(tmp_path / "two", posterior, optimizer, options, resume=resume, **settings)
    assert_same(again._tracker.steps.state, whole._tracker.steps.state, prefix="")


class Stop(lightning.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_a_training_that_stops_before_the_first_snapshot_predicts_with_the_trained_network():
    callback, module = FlatCallback(SAM(), SWAG(rank=2)), Module(torch.optim.SGD, SGD)
    with pytest.warns(UserWarning, match=r"collected 0 by step \d of 30.*early stopping"):
        run_trainer(module, callback, epochs=10, callbacks=[Stop()])
    with pytest.warns(UserWarning, match="is MAP, the trained network alone"):
        fitted = callback.make_posterior(Categorical(3))
    assert fitted.posterior == MAP()
    x, _ = make_data()
    torch.testing.assert_close(fitted.predict(x).mean.float(), module.eval()(x).softmax(-1))


def test_cycles_end_with_snapshots():
    callback = FlatCallback(SAM(), SGLD(temperature=0.1), start_fraction=0.9, snapshots_per_epoch=1, num_cycles=3)
    run_trainer(Module(torch.optim.SGD, SGD), callback, epochs=2)
    assert callback._tracker.count_snapshots() == 3


def test_refusals_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"trains one network.*5 training runs.*join_posteriors"):
        FlatCallback(SAM(), Ensemble(SWAG()))
    for flatness, posterior, words in [
        (MSAM(), SGLD(), "does not go with MSAM"),
        (PosteriorSAM(), MAP(), "does not go with PosteriorSAM"),
    ]:
        with pytest.raises(ValueError, match=words):
            FlatCallback(flatness, posterior)
        with pytest.raises(ValueError, match=words):
            train_model(tmp_path, posterior, torch.optim.SGD, SGD, flatness=flatness)
    for posterior in (SGVB(), IVON(), SGLD()):
        with pytest.raises(ValueError, match="cannot be restricted"):
            FlatCallback(SAM(), posterior, params=["net.*"])
    for posterior, optimizer, options, words in [
        (SGLD(), torch.optim.Adam, ADAM, "must be torch.optim.SGD.*got Adam"),
        (SGVB(), torch.optim.SGD, SGD, "prior is given twice"),
        (IVON(), torch.optim.Adam, ADAM, "must be torch.optim.SGD.*got Adam"),
        (Laplace(), torch.optim.SGD, {"lr": 0.1}, "needs one prior"),
        (MCDropout(), torch.optim.SGD, SGD, None),
    ]:
        module = Module(optimizer, options)
        if words is None:
            module.net.layers[3], words = nn.Identity(), "needs dropout layers"
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(ValueError, match=words):
            run_trainer(module, FlatCallback(SAM(), posterior))
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("posterior", [SGVB(), IVON(), LRT(), MCDropout(rate=0.2)], ids=repr)
def test_gradients_before_the_step_are_refused(posterior):
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2.*Use accumulate_grad_batches=1"):
        run_trainer(Module(torch.optim.Adam, ADAM), FlatCallback(SAM(), posterior), accumulate_grad_batches=2)


def test_posteriors_of_several_trainings_are_joined(tmp_path):
    members = []
    for seed in range(2):
        module, callback = Module(torch.optim.SGD, SGD), FlatCallback(SAM(), SWAG(rank=2), network="net")
        torch.manual_seed(seed)
        nn.init.normal_(module.net.layers[0].weight)
        run_trainer(module, callback)
        members.append(callback.make_posterior(Categorical(3)))
    x, _ = make_data()
    ensemble = join_posteriors(members)
    assert ensemble.posterior == Ensemble(SWAG(rank=2), 2)
    assert (ensemble.predict(x, 4).mutual_information > members[0].predict(x, 4).mutual_information).any()
    loaded = FittedPosterior.load(ensemble.save(tmp_path), Network)
    assert torch.equal(loaded.predict(x, 4).log_probs, ensemble.predict(x, 4).log_probs)
    with pytest.raises(ValueError, match="same posterior"):
        join_posteriors([members[0], FittedPosterior(MAP(), members[1].states, Categorical(3))])
    with pytest.raises(ValueError, match="no posteriors"):
        join_posteriors([])


WITH_LOSS_SCALER = [  # posterior, and whether Lightning and transformers train it with float16 and a loss scaler
    (MAP(), True, True),
    (SWAG(rank=2), True, True),
    (Laplace(), True, True),
    (MCDropout(), True, True),
    (MAP(prior_precision=0.1), True, False),
    (SGLD(temperature=0.1), False, False),
    (SGHMC(temperature=0.1), False, False),
    (SGVB(), False, False),
    (IVON(), False, False),
    (LRT(), False, False),
    (MCDropout(rate=0.3), False, False),
]


@pytest.fixture
def _loss_scaler(monkeypatch):
    """Trainers of transformers whose accelerator scales the loss, as with fp16 on a GPU."""
    create = transformers.Trainer.create_accelerator_and_postprocess

    def create_with_scaler(trainer):
        create(trainer)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", create_with_scaler)


@pytest.mark.usefixtures("_loss_scaler")
@pytest.mark.parametrize(("posterior", "in_lightning", "in_transformers"), WITH_LOSS_SCALER, ids=str)
def test_float16_with_a_loss_scaler_is_refused_where_a_step_needs_more_than_scaled_gradients(
    posterior, in_lightning, in_transformers, tmp_path
):
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with nullcontext() if in_transformers else pytest.raises(ValueError, match=r"fp16|16-mixed|float16"):
        FlatTrainer(nn.Linear(2, 2), arguments, flatness=SAM(), posterior=posterior)
    with nullcontext() if in_lightning else pytest.raises(ValueError, match=r"16-mixed|float16"):
        TrackerConfig(posterior).check_flatness(SAM(), has_loss_scaler=True)
        check_steps(posterior, 1, has_loss_scaler=True)


@pytest.mark.usefixtures("_loss_scaler")
def test_float16_with_a_loss_scaler_is_refused_for_a_flatness_in_units_of_the_loss(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="LESAM"):
        FlatTrainer(nn.Linear(2, 2), arguments, flatness=LESAM())
    for flatness in (LESAM(), Delayed(LESAM()), Delayed(before=LESAM()), Periodic(LESAM())):
        with pytest.raises(ValueError, match="LESAM"):
            TrackerConfig(MAP()).check_flatness(flatness, has_loss_scaler=True)
