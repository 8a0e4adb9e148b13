"""The strength of the prior that is chosen on validation data: the search, its cost, its record, what is refused."""

import os
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import MSAM, SAM, Plain
from flatbayes.likelihoods import Gaussian
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import IVON, LRT, MAP, SGVB, SVGD, SWAG, BLoB, Ensemble, Laplace, MCDropout
from flatbayes.posteriors.draw_options import get_option
from flatbayes.posteriors.optimization import find_weight_decay
from flatbayes.prediction import evaluate
from flatbayes.training import Checkpoints, Interrupted, TrainingConfig, choices, fit, pilot
from flatbayes.training.candidates import MAX_WEIGHT_DECAY, Candidate, Score, compute_relative_score
from flatbayes.training.data import InMemoryData
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.radius import MAX_COST
from flatbayes.training.run_factory import find_prior_precision
from flatbayes.training.sharing import try_fit_together

CONFIG = TrainingConfig(min_epochs=60, min_steps=1, batch_size=16, optimization={"prior_factor": "auto"})
NET = partial(MLP, hidden=(16,))


def make_data(noise, num_columns=10, num_train=64):
    """Two classes from the first column, some of them swapped at random, and columns without information."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_train + 200, num_columns, generator=generator)
    swapped = torch.rand(len(inputs), generator=generator) < noise
    targets = ((inputs[:, 0] > 0) ^ swapped).long()
    train, val = (
        Split(inputs=inputs[rows], targets=targets[rows]) for rows in (slice(num_train), slice(num_train, None))
    )
    return DataSplits(train=train, val=val, test=val, class_names=("a", "b"), feature_names=(), augment=None)


def weights(fitted):
    return torch.cat([p.detach().flatten() for s in fitted.states for p in s.model.parameters()])


FAST = CONFIG.with_options(min_epochs=100, batch_size=32, optimizer=partial(torch.optim.Adam, lr=0.03))
WEAK = {"prior_precision": 0.05}


@pytest.mark.parametrize(
    ("posterior", "config"),
    [
        (MAP(), FAST.with_options(optimizer=partial(torch.optim.Adam, lr=0.03, weight_decay=5e-4))),
        pytest.param(SGVB(**WEAK), FAST, marks=pytest.mark.slow),
        (Laplace("diag", **WEAK), FAST),
        pytest.param(Ensemble(MAP(**WEAK), 2), FAST, marks=pytest.mark.slow),
    ],
    ids=["weight_decay", "SGVB", "Laplace", "Ensemble"],
)
def test_the_result_is_that_of_a_straight_training_with_the_stronger_prior(posterior, config, monkeypatch):
    monkeypatch.setattr(choices, "MIN_GAIN", -10.0)  # the strongest prior within the budget
    data = make_data(noise=0.3)
    fitted = fit(NET, data, posterior, Plain(), config)
    record = fitted.info["prior"]
    assert record["factor"] >= 10
    assert record["weight_decay"] <= MAX_WEIGHT_DECAY
    assert record["factor"] in dict(map(tuple, record["scores"]))
    assert record["reason"] in fitted.summary()
    straight = config.with_options(**{"optimization.prior_factor": record["factor"]})
    again = fit(NET, data, posterior, Plain(), straight)
    assert fitted.posterior == again.posterior
    assert torch.equal(weights(fitted), weights(again))
    assert again.info["training"] == fitted.info["training"]
    path = find_prior_precision(posterior)
    if path is not None:
        assert get_option(fitted.posterior, path) == pytest.approx(0.05 * record["factor"])


def test_a_stronger_prior_has_to_gain_more_than_chance(monkeypatch):
    monkeypatch.setattr(choices, "MIN_GAIN", 10.0)
    data, config = make_data(noise=0.3), FAST
    fitted = fit(NET, data, MAP(**WEAK), Plain(), config)
    record = fitted.info["prior"]
    assert record["factor"] == 1
    assert "no stronger prior" in record["reason"]
    assert len(record["scores"]) == 2
    alone = fit(NET, data, MAP(**WEAK), Plain(), config.with_options(**{"optimization.prior_factor": 1.0}))
    assert torch.equal(weights(fitted), weights(alone))
    assert fitted.info["cost"]["gradients"] > alone.info["cost"]["gradients"]


@pytest.mark.parametrize(("noise", "flat"), [(0.0, Plain()), (0.3, Plain()), (0.3, SAM(rho=0.05)), (0.3, SAM())])
def test_all_trainings_together_cost_at_most_a_quarter_more(noise, flat):
    fitted = fit(NET, make_data(noise), MAP(), flat, CONFIG)
    steps = fitted.info["training"]["epochs"] * 4
    assert fitted.info["cost"]["gradients"] <= MAX_COST * flat.gradients_per_step * steps * (1 + 1e-9)


SEVERAL_GRADIENTS = [
    SVGD(num_particles=2),
    SVGD(num_particles=2, rho=0.1),
    SGVB(num_samples=2),
    IVON(num_samples=2),
    Ensemble(SVGD(num_particles=2), 2),
]


@pytest.mark.parametrize("posterior", SEVERAL_GRADIENTS, ids=short_name)
def test_the_budget_counts_all_gradients_of_a_step(posterior):
    config = TrainingConfig(min_epochs=6, min_steps=1, batch_size=32)
    fitted = fit(NET, make_data(noise=0.0, num_columns=2), posterior, SAM(), config)
    assert {0.0, 0.05} <= dict(map(tuple, fitted.info["radius"]["scores"])).keys()
    usual = 2 * 6 * 2 * posterior.gradients_per_step * posterior.num_members
    assert fitted.info["cost"]["gradients"] <= MAX_COST * usual * (1 + 1e-9)


def test_a_training_too_short_for_a_pilot_chooses_nothing():
    config = TrainingConfig(min_epochs=1, min_steps=1, batch_size=64)
    info = fit(NET, make_data(0.3), MAP(), MSAM(rho="auto"), config).info
    assert "too short to repeat its end" in info["radius"]["reason"]
    assert "prior" not in info


def test_the_error_of_a_pilot_whose_trainings_all_fail_is_shown():
    class Breaks(nn.Linear):
        num_passes = 0

        def forward(self, input):
            Breaks.num_passes += self.training
            if Breaks.num_passes > 28:  # after the branch of the first training
                raise RuntimeError("the matrix is singular")
            return super().forward(input)

    config = TrainingConfig(epochs=8, batch_size=16)
    with pytest.raises(RuntimeError, match=r"with radius 0 and the given prior too.*the matrix is singular"):
        fit(partial(Breaks, 10, 2), make_data(0.3), MAP(), SAM(rho="auto"), config)


def test_training_that_does_not_stop_early_is_all_there_is():
    data, config = make_data(noise=0.0, num_columns=2), CONFIG.with_options(min_epochs=8)
    fitted = fit(NET, data, SGVB(), Plain(), config)
    assert "does not stop early" in fitted.info["prior"]["reason"]
    alone = fit(NET, data, SGVB(), Plain(), config.with_options(**{"optimization.prior_factor": 1.0}))
    assert torch.equal(weights(fitted), weights(alone))
    assert fitted.info["cost"]["gradients"] == alone.info["cost"]["gradients"]


@pytest.mark.parametrize(
    ("posterior", "config", "message"),
    [
        (MAP(), replace(CONFIG, epochs=3), "the number of epochs is given"),
        (SGVB(prior_precision="initial"), CONFIG, "no prior, or one with the scale"),
        (MAP(), replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=0.1)), "no prior, or one with the scale"),
    ],
)
def test_the_record_says_why_nothing_was_tried(posterior, config, message):
    record = fit(NET, make_data(0.3), posterior, Plain(), config).info["prior"]
    assert record["factor"] == 1
    assert message in record["reason"]


def test_what_nobody_has_set_is_chosen_on_tables_only():
    default, data = TrainingConfig(min_epochs=4, min_steps=1, batch_size=16), make_data(0.3)

    def list_choices(data, posterior=MAP(), flat=SAM(), config=default):
        factory, _ = prepare_runs(NET, data, posterior, flat, config)
        return factory.auto_prior, factory.auto_flatness

    assert list_choices(data) == list_choices(data, Ensemble(SWAG(), 2)) == ("default", SAM(rho="auto"))
    assert list_choices(data, flat=SAM(rho=0.05)) == ("default", None)
    own = partial(torch.optim.SGD, lr=0.1, weight_decay=0.01)
    for posterior, config in [
        (MAP(prior_precision=1.0), default),
        (SGVB(prior_precision=2.0), default),
        (Ensemble(MAP(prior_precision=1.0), 2), default),
        (MAP(), replace(default, optimizer=own)),
    ]:
        assert list_choices(data, posterior, config=config) == (None, SAM(rho="auto"))
    assert list_choices(data, config=replace(default, epochs=3)) == (None, None)
    assert list_choices(replace(data, val=data.val.take(torch.arange(0)))) == (None, None)
    images = {
        name: replace(getattr(data, name), inputs=getattr(data, name).inputs[:, :9].reshape(-1, 1, 3, 3))
        for name in ("train", "val", "test")
    }
    assert list_choices(replace(data, **images)) == (None, None)
    fitted = fit(NET, data, MAP(), config=default)
    assert fitted.info["radius"]["value"] in (0.0, 0.05, 0.1)


@pytest.mark.parametrize(
    "posterior", [MAP(), IVON(prior_precision=2.0), Ensemble(SWAG(prior_precision=2.0), 2)], ids=str
)
def test_a_factor_multiplies_the_prior_once(posterior):
    config = TrainingConfig(
        epochs=2, batch_size=16, optimization={"prior_factor": 4.0}, collection={"start_fraction": 0.0}
    )
    (outcome, _) = try_fit_together(NET, make_data(0.3), [(posterior, config), (posterior, config)], Plain())
    fitted = fit(NET, make_data(0.3), posterior, Plain(), config)
    assert torch.equal(weights(fitted), weights(outcome.fitted))
    path = find_prior_precision(posterior)
    if path is not None:
        prior = fitted.posterior.member.prior_precision if "." in path else fitted.posterior.prior_precision
        assert prior == 8.0
        config = config.with_options(**{"optimization.prior_factor": None})
        member = replace(posterior.member, prior_precision=8.0) if "." in path else None
        other = replace(posterior, member=member) if "." in path else replace(posterior, prior_precision=8.0)
        assert torch.equal(weights(fitted), weights(fit(NET, make_data(0.3), other, Plain(), config)))


MAPPING = {"*bias": 1.0, "*": 3.0}


@pytest.mark.parametrize("posterior", [SGVB(prior_precision=MAPPING), LRT(prior_precision=MAPPING)], ids=short_name)
def test_a_factor_multiplies_each_precision_of_a_mapping(posterior):
    config = TrainingConfig(epochs=1, batch_size=32, optimization={"prior_factor": 2.0})
    for whole, path in ((posterior, "prior_precision"), (Ensemble(posterior, 2), "member.prior_precision")):
        fitted = fit(NET, make_data(0.3), whole, Plain(), config)
        assert get_option(fitted.posterior, path) == {"*bias": 2.0, "*": 6.0}
    record = fit(NET, make_data(0.3), posterior, Plain(), CONFIG.with_options(min_epochs=4)).info["prior"]
    assert record["weight_decay"] == 3 / 64


@pytest.mark.parametrize(
    ("posterior", "optimizer", "message"),
    [
        (SGVB(prior_precision="initial"), None, "is the scale of the initial weights"),
        (Ensemble(LRT(prior_precision="initial"), 2), None, "is the scale of the initial weights"),
        (BLoB(), None, "BLoB has no such prior here"),
        (MAP(), partial(torch.optim.SGD, lr=0.1), "MAP has no such prior here"),
    ],
)
def test_a_factor_without_a_prior_is_refused(posterior, optimizer, message):
    config = TrainingConfig(epochs=1, optimizer=optimizer, optimization={"prior_factor": 10.0})
    with pytest.raises(ValueError, match=f"prior_factor=10 multiplies .*{message}"):
        fit(NET, make_data(0.3), posterior, Plain(), config)


def test_an_optimizer_of_matrices_has_a_weight_decay():
    assert find_weight_decay(partial(torch.optim.Muon, lr=0.1, weight_decay=0.3)) == 0.3


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), "strong"])
def test_factors_that_are_no_positive_number_are_refused(factor):
    with pytest.raises(ValueError, match="prior_factor must be positive and finite, or auto"):
        TrainingConfig(optimization={"prior_factor": factor})


def test_a_choice_of_the_prior_needs_a_pilot():
    config = CONFIG.with_options(**{"precision.cuda_graph": True})
    with pytest.raises(ValueError, match=r"prior_factor 'auto' is chosen by a pilot.*precision.cuda_graph"):
        fit(NET, make_data(0.3), MAP(), Plain(), config)


def test_scores_differ_from_the_reference_by_the_worse_of_both_differences():
    reference = Score(end=0.5, best=0.4)
    assert compute_relative_score(Score(end=0.45, best=0.3), reference) == pytest.approx(0.35)
    assert compute_relative_score(Score(end=0.3, best=0.3), reference) == 0.3
    assert compute_relative_score(Score(end=None, best=None), reference) is None


@pytest.mark.parametrize("posterior", [MAP(), Ensemble(MAP(), 2)], ids=["one network", "vectorized networks"])
def test_the_end_of_a_training_is_predicted_once_and_scored_as_the_validation_does(posterior, monkeypatch):
    calls, ends = [], []
    predict, validate = InMemoryData._predict_split, pilot.Pilot._validate

    def counted(*arguments):
        calls.append(arguments)
        return predict(*arguments)

    def recorded(self, run):
        before = len(calls)
        score, losses = validate(self, run)
        ends.append((len(calls) - before, score, float(losses.mean()), run.validate(run.leader.get_state().model)[0]))
        return score, losses

    monkeypatch.setattr(InMemoryData, "_predict_split", counted)
    monkeypatch.setattr(pilot.Pilot, "_validate", recorded)
    fit(NET, make_data(0.3), posterior, SAM(rho="auto"), TrainingConfig(epochs=8, batch_size=16))
    assert len(ends) > 1
    for num_passes, score, mean, validated in ends:
        assert (num_passes, score) == (1, validated["val_nll"])
        assert score == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("network", [MLP, partial(ConvNet, width=2)])
def test_dropout_without_a_rate_has_the_default_rate(network):
    data = make_data(0.3)
    images = {
        name: replace(getattr(data, name), inputs=getattr(data, name).inputs[:, :9].reshape(-1, 1, 3, 3))
        for name in ("train", "val", "test")
    }
    config = TrainingConfig(epochs=2, batch_size=16)
    fitted = fit(network, replace(data, **images), Ensemble(MCDropout(), 2), Plain(), config)
    assert fitted.posterior.member.rate == 0.1
    own = fit(partial(network, dropout=0.3), replace(data, **images), MCDropout(), Plain(), config)
    assert own.posterior.rate is None
    shared = try_fit_together(network, replace(data, **images), [(MAP(), config), (MCDropout(), config)], Plain())
    assert [outcome.fitted.posterior for outcome in shared] == [MAP(), MCDropout(rate=0.1)]
    assert not torch.equal(*(weights(outcome.fitted) for outcome in shared))


def make_regression():
    """A linear function with a noise of 0.5."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 3, generator=generator)
    targets = inputs[:, 0] + 0.5 * torch.randn(300, generator=generator)
    train, val = (Split(inputs=inputs[rows], targets=targets[rows]) for rows in (slice(40), slice(40, None)))
    return DataSplits(
        train=train, val=val, test=val, class_names=(), feature_names=(), augment=None, target_names=("y",)
    )


def test_the_noise_of_a_network_that_overfits_is_corrected_on_validation_examples():
    data, config = make_regression(), TrainingConfig(epochs=150, batch_size=16)
    likelihood = replace(Gaussian.fit(data.train.targets), noise_factor="auto")
    fitted = fit(NET, data, MAP(), Plain(), config, likelihood=likelihood)
    choice = fitted.info["training"]["draw_options"]["noise_factor"]
    assert fitted.likelihood.noise_factor == choice["value"] > 1.1
    losses = dict(map(tuple, choice["val_nll"]))
    for factor in (1.0, choice["value"]):
        other = replace(fitted, likelihood=replace(fitted.likelihood, noise_factor=factor), norm_statistics={})
        assert evaluate(other, data.val).metrics["nll"] == pytest.approx(losses[factor])
    assert losses[choice["value"]] == min(losses.values()) < losses[1.0]
    coverages = []
    for factor in (1.0, choice["value"]):
        other = replace(fitted, likelihood=replace(fitted.likelihood, noise_factor=factor), norm_statistics={})
        coverages.append(evaluate(other, data.test).metrics["coverage_95"])
    assert coverages[0] < coverages[1]
    fixed = fit(NET, data, MAP(), Plain(), config, likelihood=Gaussian.fit(data.train.targets))
    assert torch.equal(weights(fixed), weights(fitted))
    assert fixed.likelihood.noise_factor is None
    empty = data.val.take(torch.arange(0))
    alone = fit(NET, replace(data, val=empty), MAP(), Plain(), config, likelihood=likelihood)
    assert alone.likelihood.noise_factor == 1


class StoppedPilot(pilot.BudgetGuard):
    """Fails after a number of steps of all trainings of a pilot."""

    steps_left = 0

    def on_step_end(self, step, loss, lr):
        StoppedPilot.steps_left -= 1
        if StoppedPilot.steps_left < 0:
            raise ConnectionError("the plug was pulled")
        super().on_step_end(step, loss, lr)


@pytest.mark.parametrize(
    ("posterior", "flat", "config", "name"),
    [
        (SWAG(rank=2, **WEAK), Plain(), FAST.with_options(min_epochs=60), "prior"),  # whole trainings
        (MAP(), SAM(rho="auto"), TrainingConfig(epochs=8, batch_size=16, num_validations=1), "radius"),  # ends of one
    ],
    ids=["prior", "radius"],
)
def test_a_pilot_that_was_stopped_continues(posterior, flat, config, name, monkeypatch, tmp_path):
    monkeypatch.setattr(pilot, "BudgetGuard", StoppedPilot)
    monkeypatch.setattr(choices, "MIN_GAIN", -10.0)
    train = partial(fit, NET, make_data(0.3), Ensemble(posterior, 2), flat, config)
    StoppedPilot.steps_left = 10**6
    expected = train()
    num_steps = 10**6 - StoppedPilot.steps_left
    checkpoints = Checkpoints(tmp_path, every_n_steps=4, min_interval_seconds=0)
    for _ in range(4):  # up to four steps are repeated after each
        StoppedPilot.steps_left = num_steps // 5
        with pytest.raises(ConnectionError):
            train(checkpoints=checkpoints)
    StoppedPilot.steps_left = num_steps // 5 + 16
    fitted = train(checkpoints=checkpoints)
    assert torch.equal(weights(fitted), weights(expected))
    assert fitted.info["cost"]["gradients"] == expected.info["cost"]["gradients"]
    assert fitted.info[name] == expected.info[name]
    assert len(fitted.info[name]["scores"]) >= 2
    assert fitted.info["training"] == expected.info["training"]
    assert all(int(path.stem[:4]) < pilot.PILOT_RUN_INDEX for path in tmp_path.glob("*.pt"))


def test_an_interruption_of_the_pilot_has_what_was_fitted(monkeypatch, tmp_path):
    def interrupt(guard, step, loss, lr):
        if step == 50:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(pilot.BudgetGuard, "on_step_end", interrupt)
    config = TrainingConfig(min_epochs=60, min_steps=1, batch_size=16)
    with pytest.raises(Interrupted, match=r"after step 50 of.*with its checkpoints continues after step 50") as stop:
        fit(NET, make_data(0.3), MAP(), SAM(), config, checkpoints=Checkpoints(tmp_path))
    assert stop.value.fitted.predict(torch.randn(2, 10)).mean.shape == (2, 2)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_radius_0_is_plain_training_with_its_choice_of_the_prior(noise, monkeypatch):
    """Trying radii leaves the gradients that plain training has for stronger priors."""
    monkeypatch.setattr(choices, "select_radius", lambda *_: 0.0)
    config = CONFIG.with_options(min_epochs=200, optimizer=partial(torch.optim.Adam, lr=0.03, weight_decay=5e-4))
    data = make_data(noise)
    plain, flat = (fit(NET, data, MAP(), flatness, config) for flatness in (Plain(), SAM(rho="auto")))
    assert len(flat.info["radius"]["scores"]) > 1
    assert flat.info["prior"]["scores"] == plain.info["prior"]["scores"]
    assert len(plain.info["prior"]["scores"]) > 1
    assert torch.equal(weights(plain), weights(flat))


@pytest.mark.parametrize(
    ("num_gradients", "stopped_early", "reserve", "epochs"),
    [(30.0, True, 95.0, 62), (30.0, False, 0.0, None), (70.0, True, 0.0, 90), (100.0, False, 0.0, 75)],
)
def test_radii_are_tried_with_what_stronger_priors_do_not_need(num_gradients, stopped_early, reserve, epochs):
    plain, config = Candidate(0.0), TrainingConfig(epochs=100, early_stopping=True)
    pilot = SimpleNamespace(
        budget=MAX_COST * 200,
        num_gradients=num_gradients,
        num_steps=100,
        outcomes={plain: SimpleNamespace(num_gradients=num_gradients, stopped_early=stopped_early)},
        setups=[SimpleNamespace(factory=SimpleNamespace(config=config))],
        count_gradients=lambda num_steps, flatness: num_steps * flatness.gradients_per_step,
    )
    assert choices.compute_reserve(pilot, plain) == reserve
    candidates = choices.list_whole_trainings(pilot, SAM(rho="auto"), plain, reserve)
    assert [candidate.epochs for candidate in candidates] == [epochs, epochs]
