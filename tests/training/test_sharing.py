"""Posteriors that share a training end in the same numbers, bit for bit, as with a training of their own."""

import inspect
import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from flatbayes.data import Augment, DataSplits, Split, Standardize
from flatbayes.flatness import SAM, Plain, PosteriorSAM
from flatbayes.likelihoods import Gaussian
from flatbayes.models import MLP
from flatbayes.posteriors import IVON, LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import (
    FINE_TUNING,
    Callback,
    Checkpoints,
    CollectionConfig,
    Constant,
    Cosine,
    DistributionConfig,
    Interrupted,
    TrainingConfig,
    fit,
    fit_together,
)
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.identity import describe_training
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.sharing import try_fit_together
from support import FLATNESSES, batch, named


class TakesNamed(nn.Linear):
    """A network with a named input."""

    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return super().forward(x)


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
CONFIG = TrainingConfig(
    epochs=3,
    batch_size=13,
    optimizer=SGD,
    schedule=Cosine(),
    num_validations=2,
    collection=CollectionConfig(start_fraction=0.3, num_norm_batches=2),
)
EARLY = replace(CONFIG, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2, num_norm_batches=3))
CHAIN = {"optimizer": partial(torch.optim.SGD, lr=0.01), "collection": CollectionConfig(start_fraction=0.7)}
UNDECAYED = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}
GROUPS = {
    "weight decay": [
        (MAP(), CONFIG),
        (SWAG(rank=3), CONFIG),
        (SWAG(rank=0, scale=1.0), EARLY),
        (SWAG(rank=2, params=["*.bias"], storage="cpu"), CONFIG),
        (MCDropout(), EARLY),
        (Laplace("kron", "sampled", tune="evidence", temperature=0.5), CONFIG),
        (Ensemble(SWAG(rank=2), size=2), EARLY),
    ],
    "prior": [
        (Laplace("last_layer", prior_precision=4.0, temperature=0.5), replace(CONFIG, **UNDECAYED)),
        (SWAG(rank=2, prior_precision=2.0), replace(EARLY, **UNDECAYED)),
        (MAP(prior_precision=2.0), replace(CONFIG, **UNDECAYED)),
    ],
    "langevin": [
        (SGLD(max_snapshots=2), replace(CONFIG, **CHAIN)),
        (SGLD(), replace(CONFIG, **{**CHAIN, "collection": CollectionConfig(start_fraction=0.8)})),
    ],
    "hamiltonian": [
        (SGHMC(max_snapshots=2, storage="cpu"), replace(CONFIG, **CHAIN)),
        (Ensemble(SGHMC(), size=2), replace(CONFIG, **CHAIN)),
    ],
}


def make_network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(108, 8),
        nn.BatchNorm1d(8, momentum=None),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 3),
    )


def make_splits():
    train, held_out = (Split(inputs=inputs, targets=targets) for inputs, targets in (batch(0, 40), batch(1, 20)))
    names = ("a", "b", "c")
    return DataSplits(
        train=train,
        val=held_out,
        test=held_out,
        class_names=names,
        feature_names=(),
        augment=Augment(flip=True, pad=1),
    )


DATA = make_splits()


def assert_same(fitted, other):
    """Everything that the fits end in is equal: weights, buffers, statistics, inputs for BatchNorm, predictions."""
    assert list_facts(fitted) == list_facts(other)
    torch.testing.assert_close(list_tensors(fitted), list_tensors(other), rtol=0, atol=0, equal_nan=True)


def list_tensors(fitted):
    states = [({**s.model.state_dict()}, dict(s.statistics)) for s in fitted.states]
    predictive = fitted.predict(DATA.test.inputs, num_draws=4, seed=3)
    return states, list(fitted.statistics_inputs), getattr(predictive, "log_probs", predictive.mean)


def list_facts(fitted):
    states = [(s.updated_buffers, s.optimizer, s.num_data, s.model.training) for s in fitted.states]
    return states, fitted.info["cost"]["gradients"], fitted.info["training"]


FITS = {}


def fit_alone(posterior, config, flat):
    """The result of `fit`, computed once; lists of parameters cannot be hashed, so the key is a text."""
    key = repr((posterior, config, flat))
    if key not in FITS:
        FITS[key] = fit(make_network, DATA, posterior, flat, config, seed=1, show_progress=False)
    return FITS[key]


def fit_group(methods, flat, **options):
    return try_fit_together(make_network, DATA, methods, flat, seed=1, **options)


def is_accepted(method, flat):
    try:
        check_compatibility(method[0], flat, method[1])
    except ValueError:
        return False
    return True


CASES = [
    pytest.param(name, flat, marks=[] if k == j else [pytest.mark.slow], id=f"{name}-{label}")
    for j, name in enumerate(GROUPS)
    for k, (flat, label) in enumerate(zip(FLATNESSES, named(FLATNESSES), strict=True))
    if is_accepted(GROUPS[name][0], flat)
]


@pytest.mark.parametrize(("name", "flat"), CASES)
def test_a_shared_training_ends_as_one_for_each_posterior(name, flat):
    methods, turn = GROUPS[name], FLATNESSES.index(flat) % len(GROUPS[name])
    methods = methods[turn:] + methods[:turn]  # another one takes the steps
    caller = torch.get_rng_state()
    outcomes = fit_group(methods, flat)
    assert torch.equal(torch.get_rng_state(), caller)
    for (posterior, config), shared in zip(methods, outcomes, strict=True):
        assert shared.error is None, shared.error
        assert_same(shared.fitted, fit_alone(posterior, config, flat))
    models = [state.model for shared in outcomes for state in shared.fitted.states]
    assert len(set(map(id, models))) == len(models)


def test_validation_batches_beside_a_loader_are_those_of_fit():
    loader, val = [batch(0, 13), batch(1, 13)], [batch(2, 20)]
    methods = [(MAP(), CONFIG), (SWAG(rank=2, scale="auto"), EARLY)]
    outcomes = try_fit_together(make_network, loader, methods, SAM(), val=val, seed=1)
    for (posterior, config), shared in zip(methods, outcomes, strict=True):
        assert_same(shared.fitted, fit(make_network, loader, posterior, SAM(), config, val=val, seed=1))
    assert "val_nll" in outcomes[1].fitted.info["training"]["draw_options"]["scale"]


@pytest.mark.parametrize("members", ["vectorized", "workers"])
def test_vectorized_members_and_those_of_workers_are_trained_beside_a_single_network(members):
    distribution = DistributionConfig(members=members)
    config = replace(CONFIG, distribution=distribution, epochs=1, schedule=Constant())
    methods = [(MAP(), config), (Ensemble(size=2), config), (Ensemble(SWAG(rank=2), size=2), config)]
    if members == "workers":
        assert len({json.dumps(describe_training(*method)) for method in methods}) == 3
        return
    network = partial(MLP, hidden=(4,))
    outcomes = try_fit_together(network, DATA, methods, SAM(), seed=1)
    for (posterior, _), shared in zip(methods, outcomes, strict=True):
        assert_same(shared.fitted, fit(network, DATA, posterior, SAM(), config, seed=1, show_progress=False))


REPLAYED = {
    "optimizer": [(MAP(), CONFIG), (SWAG(rank=3), CONFIG), (Laplace("kron", "sampled"), CONFIG)],
    "hamiltonian": [
        (SGHMC(max_snapshots=2), replace(CONFIG, **CHAIN)),
        (Ensemble(SGHMC(), size=3), replace(CONFIG, **CHAIN)),
    ],
}


@pytest.mark.parametrize("name", REPLAYED)
def test_a_recorded_training_is_replayed_for_each_posterior(name):
    recordings, num_steps = {}, []
    for posterior, config in REPLAYED[name]:
        counter = StepCounter()
        (replayed,) = fit_group([(posterior, config)], SAM(), recordings=recordings, callback=counter)
        assert_same(replayed.fitted, fit_alone(posterior, config, SAM()))
        assert [record["epoch"] for record in replayed.records] == [1, 2, 3]
        num_steps.append(counter.num_steps)
    assert num_steps == ([9, 0, 0] if name == "optimizer" else [9, 18])


def test_a_replay_does_not_continue_from_a_checkpoint(tmp_path):
    recordings, checkpoints = {}, Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0)
    with pytest.raises(ConnectionError):
        fit_group([(SWAG(rank=2), EARLY)], Plain(), checkpoints=checkpoints, callback=Stop(7))
    fit_group([(SWAG(rank=3), EARLY)], Plain(), recordings=recordings)
    (outcome,) = fit_group([(SWAG(rank=2), EARLY)], Plain(), checkpoints=checkpoints, recordings=recordings)
    assert_same(outcome.fitted, fit_alone(SWAG(rank=2), EARLY, Plain()))


def test_a_training_that_failed_is_recorded_again():
    recordings = {}
    with pytest.raises(ConnectionError):
        fit_group([(SWAG(rank=2), CONFIG)], Plain(), recordings=recordings, callback=Stop(7))
    for _ in range(2):
        (outcome,) = fit_group([(SWAG(rank=2), CONFIG)], Plain(), recordings=recordings)
        assert_same(outcome.fitted, fit_alone(SWAG(rank=2), CONFIG, Plain()))


class OtherStep(MAP):
    def step(self, state, closure):
        return super().step(state, closure)


class OtherOptimizer(MAP):
    default_optimizer = SGD


class OtherDraw(MAP):
    def draw(self, state, generator):
        return super().draw(state, generator)


def test_a_flatness_with_the_distribution_of_the_posterior_is_not_shared():
    methods = [(SWAG(rank=2), CONFIG), (SWAG(rank=3), CONFIG)]
    assert describe_training(*methods[0], SAM()) == describe_training(*methods[1], SAM())
    assert describe_training(*methods[0], PosteriorSAM()) != describe_training(*methods[1], PosteriorSAM())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((MAP(), CONFIG), (MAP(prior_precision=1.0), CONFIG)),
        ((MAP(), CONFIG), (MCDropout(rate=0.5), CONFIG)),
        ((MAP(), CONFIG), (SGLD(), CONFIG)),
        ((MAP(), CONFIG), (SGVB(), CONFIG)),
        ((LRT(), CONFIG), (SGVB(), CONFIG)),
        ((SGLD(), CONFIG), (SGLD(temperature=0.5), CONFIG)),
        ((SGLD(), CONFIG), (SGHMC(friction=1.0), CONFIG)),
        ((SGHMC(), CONFIG), (SGHMC(friction=0.2), CONFIG)),
        ((Laplace(prior_precision=2.0), CONFIG), (Laplace(prior_precision=2.0, temperature=0.5), CONFIG)),
        ((Ensemble(SGLD(), size=2), CONFIG), (MAP(), CONFIG)),
        ((MAP(), CONFIG), (OtherStep(), CONFIG)),
        ((Ensemble(OtherStep()), CONFIG), (MAP(), CONFIG)),
        ((MAP(), TrainingConfig()), (MAP(prior_precision=1.0), TrainingConfig())),
        ((MAP(), TrainingConfig()), (OtherOptimizer(), TrainingConfig())),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, epochs=4))),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, batch_size=5))),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, schedule=Constant()))),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, num_validations=3))),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, optimizer=partial(SGD, lr=0.1)))),
        ((MAP(), CONFIG), (MAP(), replace(CONFIG, optimizer=partial(SGD, weight_decay=0.0)))),
        ((MAP(), CONFIG), (MAP(), CONFIG.with_options(**{"optimization.clip_norm": 1.0}))),
        ((MAP(), CONFIG), (MAP(), CONFIG.with_options(**{"precision.mode": "64-true"}))),
        ((MAP(), replace(CONFIG, optimizer=lambda p: SGD(p))), (MAP(), replace(CONFIG, optimizer=lambda p: SGD(p)))),
        ((IVON(), CONFIG), (IVON(beta2=0.9), CONFIG)),
        ((SGVB(), CONFIG), (SGVB(), EARLY)),
    ],
    ids=lambda method: f"{method[0]}"[:40],
)
def test_different_trainings_are_not_shared(one, other):
    assert describe_training(*one) != describe_training(*other)


def test_a_subclass_that_changes_only_draws_shares_the_training_of_its_base():
    assert describe_training(OtherDraw(), CONFIG) == describe_training(MAP(), CONFIG)
    decay = replace(CONFIG, optimizer=None)
    explicit = replace(CONFIG, optimizer=MAP().default_optimizer)
    assert describe_training(MAP(), decay) == describe_training(SWAG(rank=0), explicit)


@dataclass(frozen=True)
class Failing(SWAG):
    """A posterior that fails at a place."""

    place: str = "collect"
    trajectory = MAP().trajectory

    def fail(self, place):
        if place == self.place:
            raise ArithmeticError(f"at {place}")

    def init(self, model, make_optimizer, num_data):
        self.fail("init")
        return super().init(model, make_optimizer, num_data)

    def collect(self, state):
        if state.num_data == len(DATA.train):  # not in the trial
            self.fail("collect")
        super().collect(state)

    def finalize(self, state, examples, loss_fn):
        if state.num_data == len(DATA.train):
            self.fail("finalize")


@pytest.mark.parametrize(
    ("place", "is_first"),
    [
        ("init", True),
        ("collect", True),
        ("finalize", False),
        pytest.param("init", False, marks=pytest.mark.slow),
        pytest.param("collect", False, marks=pytest.mark.slow),
        pytest.param("finalize", True, marks=pytest.mark.slow),
    ],
)
def test_a_posterior_that_fails_does_not_change_the_others(place, is_first):
    methods = [(Failing(place=place), CONFIG), (SWAG(rank=2), CONFIG), (MAP(), EARLY)]
    outcomes = fit_group(methods if is_first else methods[::-1], Plain())
    failed, swag, point = outcomes if is_first else outcomes[::-1]
    assert failed.fitted is None
    assert str(failed.error) == f"at {place}"
    assert_same(swag.fitted, fit_alone(SWAG(rank=2), CONFIG, Plain()))
    assert_same(point.fitted, fit_alone(MAP(), EARLY, Plain()))
    with pytest.raises(ArithmeticError, match=f"at {place}"):
        fit_alone(Failing(place=place), CONFIG, Plain())


def test_what_ends_a_training_fails_the_posteriors_that_need_its_network():
    diverging = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=1e30))
    outcomes = fit_group([(MAP(), diverging), (SWAG(), replace(diverging, collection=EARLY.collection))], Plain())
    for outcome in outcomes:
        with pytest.raises(RuntimeError, match=r"The loss is .* in epoch"):
            raise outcome.error


def test_a_second_member_that_diverges_does_not_change_the_posteriors_of_the_first(monkeypatch):
    init_network = RunFactory.init_network

    def init_or_spoil(factory, member):
        network = init_network(factory, member)
        if member == 1:
            nn.init.constant_(network[-1].bias, math.nan)
        return network

    monkeypatch.setattr(RunFactory, "init_network", init_or_spoil)
    ensemble, point = fit_group([(Ensemble(size=2), CONFIG), (MAP(), CONFIG)], Plain())
    with pytest.raises(RuntimeError, match=r"The loss is nan in epoch 1 of 3"):
        raise ensemble.error
    assert_same(point.fitted, fit_alone(MAP(), CONFIG, Plain()))


def test_every_posterior_has_its_own_error():
    failing = [(Failing(place="collect"), CONFIG), (Failing(place="finalize"), CONFIG)]
    assert [str(outcome.error) for outcome in fit_group(failing, Plain())] == ["at collect", "at finalize"]


def test_an_interruption_remains_one_where_the_last_pass_over_the_data_fails():
    callback = Callback()
    callback.on_step_end = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(Interrupted, match="cannot predict yet: at finalize"):
        fit_group([(Failing(place="finalize"), CONFIG), (MAP(), CONFIG)], Plain(), callback=callback)


class Stop(Callback):
    """Ends the training after a number of steps, over all members."""

    def __init__(self, after):
        self.left = after

    def on_step_end(self, step, loss, lr):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the plug was pulled")


RESUMED = [
    (SWAG(rank=3), EARLY),
    (MAP(), CONFIG),
    (Laplace("kron", "sampled"), CONFIG),
    (Ensemble(size=2), CONFIG),
    (SWAG(rank=2), replace(CONFIG, collection=CollectionConfig(start_fraction=0.1, snapshots_per_epoch=3))),
]


@pytest.mark.parametrize("after", [13, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 4, 9, 10, 17))])
def test_a_shared_training_continues_after_an_interruption(after, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0)
    methods = [*RESUMED, (Failing(), CONFIG)]
    with pytest.raises(ConnectionError):
        fit_group(methods, SAM(), checkpoints=checkpoints, callback=Stop(after))
    counter = StepCounter()
    *outcomes, failed = fit_group(methods, SAM(), checkpoints=checkpoints, callback=counter)
    assert counter.num_steps == 18 - after  # of nine steps of each member
    assert str(failed.error) == "at collect"
    for (posterior, config), shared in zip(RESUMED, outcomes, strict=True):
        assert_same(shared.fitted, fit_alone(posterior, config, SAM()))


@pytest.mark.parametrize("subset", [[2, 4], *(pytest.param([k], marks=pytest.mark.slow) for k in (1, 3))])
def test_some_posteriors_continue_from_the_checkpoints_of_all(subset, tmp_path):
    checkpoints, methods = (
        Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0),
        [RESUMED[k] for k in subset],
    )
    with pytest.raises(ConnectionError):
        fit_group(RESUMED, Plain(), checkpoints=checkpoints, callback=Stop(5))
    counter = StepCounter()
    outcomes = fit_group(methods, Plain(), checkpoints=checkpoints, callback=counter)
    assert counter.num_steps == (13 if subset == [3] else 4)
    for (posterior, config), shared in zip(methods, outcomes, strict=True):
        assert_same(shared.fitted, fit_alone(posterior, config, Plain()))
    again = StepCounter()
    repeated = fit_group(methods, Plain(), checkpoints=checkpoints, callback=again)
    assert again.num_steps == 0
    for one, other in zip(outcomes, repeated, strict=True):
        assert_same(one.fitted, other.fitted)
        assert one.records == other.records


def test_checkpoints_without_one_of_the_posteriors_are_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0)
    with pytest.raises(ConnectionError):
        fit_group(RESUMED[:1], Plain(), checkpoints=checkpoints, callback=Stop(5))
    counter = StepCounter()
    outcomes = fit_group(RESUMED[:2], Plain(), checkpoints=checkpoints, callback=counter)
    assert counter.num_steps == 9
    for (posterior, config), shared in zip(RESUMED[:2], outcomes, strict=True):
        assert_same(shared.fitted, fit_alone(posterior, config, Plain()))


class StepCounter(Callback):
    """Counts steps."""

    def __init__(self):
        self.num_steps = 0

    def on_step_end(self, step, loss, lr):
        self.num_steps += 1


class Uncopyable(nn.Linear):
    """A network that deepcopy refuses."""

    def __init__(self):
        super().__init__(64, 3)
        self.source = (k for k in range(3))

    def forward(self, x):
        return super().forward(x.flatten(1))


def test_networks_that_cannot_be_copied_are_built_anew():
    methods = [(MAP(), CONFIG), (SWAG(rank=2), CONFIG)]
    outcomes = try_fit_together(Uncopyable, DATA, methods, Plain(), seed=1)
    for (posterior, config), shared in zip(methods, outcomes, strict=True):
        assert_same(shared.fitted, fit(Uncopyable, DATA, posterior, Plain(), config, seed=1, show_progress=False))


def test_the_cost_is_that_of_the_posterior_alone():
    slow = [(Slow(rank=2), CONFIG), (MAP(), CONFIG), (Ensemble(size=3), CONFIG)]
    costs = [shared.fitted.info["cost"] for shared in fit_group(slow, Plain())]
    assert [cost["gradients"] for cost in costs] == [9, 9, 27]
    assert [cost["num_posteriors"] for cost in costs] == [3, 3, 3]
    first, second, third = (cost["train_seconds"] for cost in costs)
    assert first - second > 0.2  # its two snapshots alone
    assert third > second


@dataclass(frozen=True)
class Slow(SWAG):
    """A posterior whose snapshots take a tenth of a second."""

    trajectory = MAP().trajectory

    def collect(self, state):
        time.sleep(0.1)
        super().collect(state)


OPEN = replace(CONFIG, optimizer=None)
ONE_SNAPSHOT = replace(CONFIG, epochs=1, collection=CollectionConfig(start_fraction=0.99))
TOGETHER = [MAP(), SWAG(rank=2), Laplace("kron", "sampled"), MCDropout(), SGVB(), Ensemble(size=2)]
STATE_DICTS = [{name: tensor + k for name, tensor in make_network().state_dict().items()} for k in (0, 1)]
REGRESSION = [(x, y.float()[:, None]) for x, y in (batch(0, 13), batch(1, 13))]
FIT_ARGUMENTS = {
    "no options": ({}, TOGETHER),
    "init and freeze": ({"init": STATE_DICTS, "freeze": ["0.*"]}, TOGETHER),
    "new head": ({"init": STATE_DICTS[0] | {"9.weight": torch.ones(5, 8)}, "new_head": True}, TOGETHER),
    "transform": ({"transform": Standardize(mean=torch.ones(1, 1, 1), std=torch.full((1, 1, 1), 2.0))}, TOGETHER[:2]),
    "likelihood": ({"data": REGRESSION, "likelihood": Gaussian()}, TOGETHER[:2]),
    "batches": ({"data": [batch(0, 13), batch(1, 13)], "val": [batch(2, 20)], "num_data": 30}, TOGETHER[:3]),
    "optimizer without a name": ({"config": replace(OPEN, optimizer=lambda p: SGD(p))}, TOGETHER[:3]),
    "output": ({"model": lambda: WithHidden(), "output": "logits"}, TOGETHER[:2]),
}


class WithHidden(nn.Linear):
    """A network with two outputs."""

    def __init__(self):
        super().__init__(64, 3)

    def forward(self, x):
        return {"hidden": x, "logits": super().forward(x.flatten(1))}


@pytest.mark.parametrize(("options", "posteriors"), FIT_ARGUMENTS.values(), ids=list(FIT_ARGUMENTS))
def test_posteriors_fitted_together_are_those_of_fit(options, posteriors):
    arguments = {"model": make_network, "data": DATA, "flatness": SAM(), "config": OPEN, "seed": 1} | options
    if options.get("likelihood"):
        arguments["model"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    together = fit_together(posteriors=posteriors, **arguments)
    assert len(together) == len(posteriors)
    for posterior, fitted in zip(posteriors, together, strict=True):
        assert_same(fitted, fit(posterior=posterior, **arguments))
    shared = [fitted.info["cost"]["num_posteriors"] for fitted in together]
    assert shared == ([5, 5, 5, 5, 1, 5] if len(posteriors) == 6 else [len(posteriors)] * len(posteriors))


def test_arguments_of_fit_together_are_those_of_fit():
    own, others = (dict(inspect.signature(function).parameters) for function in (fit_together, fit))
    assert list(own) == ["posteriors" if name == "posterior" else name for name in others]
    for name in others.keys() & own.keys():
        assert (own[name].default, own[name].kind) == (others[name].default, others[name].kind), name
    (fitted,) = fit_together(make_network, DATA, ["MAP"], config={"min_steps": 1}, init=STATE_DICTS[0])
    assert fitted.info["training"]["epochs"] == FINE_TUNING.min_epochs


@pytest.mark.parametrize(
    ("posteriors", "options", "error"),
    [
        ([], {}, "list of at least one"),
        (MAP(), {}, "list of at least one"),
        ([MAP(), "SWAK"], {}, "Unknown posterior 'SWAK'"),
        ([MAP(), Ensemble(size=2)], {"init": STATE_DICTS[0]}, "Ensemble trains 2 networks, and init has 1"),
        (
            [MAP(), SWAG(rank=2)],
            {"config": ONE_SNAPSHOT},
            "SWAG.* needs at least 2 collected",
        ),
        ([MAP(), LRT()], {"flatness": PosteriorSAM()}, "MAP.* does not go with PosteriorSAM"),
    ],
)
def test_a_posterior_that_fit_refuses_is_refused_before_the_first_step(posteriors, options, error):
    counter = StepCounter()
    with pytest.raises(ValueError, match=error):
        fit_together(make_network, DATA, posteriors, callback=counter, **{"config": CONFIG} | options)
    assert counter.num_steps == 0


def test_other_trainings_read_the_same_batches_of_examples_with_several_inputs():
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    posteriors = [SGVB(), MAP(), Ensemble(size=2)]
    options = {"config": TrainingConfig(epochs=2, batch_size=8), "seed": 1}
    fitted = fit_together(TakesNamed, ({"x": x}, y), posteriors, Plain(), **options)
    for together, posterior in zip(fitted, posteriors, strict=True):
        alone = fit(TakesNamed, ({"x": x}, y), posterior, Plain(), **options)
        assert torch.equal(together.predict({"x": x}, 2).mean, alone.predict({"x": x}, 2).mean)


def test_the_others_are_fitted_without_a_step_after_one_has_failed(tmp_path):
    checkpoints, counter = Checkpoints(tmp_path), StepCounter()
    methods = [SWAG(rank=2), Failing(place="finalize"), SGVB()]
    with pytest.raises(ArithmeticError, match="at finalize") as caught:
        fit_together(make_network, DATA, methods, Plain(), OPEN, seed=1, checkpoints=checkpoints)
    assert caught.value.__notes__ == ["The other posteriors were fitted: SWAG(rank=2), SGVB."]
    fitted = fit_together(
        make_network, DATA, [SGVB(), SWAG(rank=2)], Plain(), OPEN, seed=1, checkpoints=checkpoints, callback=counter
    )
    assert counter.num_steps == 0
    assert_same(fitted[1], fit_alone(SWAG(rank=2), OPEN, Plain()))
    with pytest.raises(ValueError, match="checkpoints of this training without some of the posteriors"):
        fit_together(make_network, DATA, [MAP()], Plain(), OPEN, seed=1, checkpoints=checkpoints)
    with pytest.raises(ValueError, match="checkpoints of another training: seed differ"):
        fit_together(make_network, DATA, [SGVB()], Plain(), OPEN, seed=2, checkpoints=checkpoints)
    checkpoints.remove()
    assert not tmp_path.exists()
