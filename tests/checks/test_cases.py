"""Every check has a case that trips it and one that does not; small real fits, made once."""

import math
import re
from dataclasses import replace
from functools import cache, partial
from itertools import cycle

import pytest
import torch
from torch import nn

import flatbayes
from flatbayes import (
    BSAM,
    IVON,
    LRT,
    MAP,
    MLP,
    SGHMC,
    SGLD,
    SGVB,
    SWAG,
    Ensemble,
    Laplace,
    MCDropout,
    TrainingConfig,
    fit,
    posteriors,
)
from flatbayes.checks import CHECKS, CheckReport, Finding, check, gaussians
from flatbayes.checks.chains import find_chance_r_hat, summarize_chains
from flatbayes.checks.inputs import find_worst_layer
from flatbayes.checks.report import SIGNIFICANCE
from flatbayes.checks.spread import make_centre
from flatbayes.checks.suite import correct_p_values
from flatbayes.checks.training_length import compute_constant_nll, measure_late_fall, measure_rise
from flatbayes.core.spec import short_name
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Custom, Gaussian

SMALL = partial(MLP, hidden=(16,))
SGD, ADAM = torch.optim.SGD, torch.optim.Adam


@cache
def classes(label_noise=0.0, train_size=300):
    """Three overlapping classes in four dimensions: training and validation data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (train_size + 400,), generator=generator)
    inputs = torch.randn(len(labels), 4, generator=generator)
    inputs[:, 0] += 2 * (labels == 1)
    inputs[:, 1] += 2 * (labels == 2)
    is_noise = torch.rand(len(labels), generator=generator) < label_noise
    labels = torch.where(is_noise, torch.randint(0, 3, labels.shape, generator=generator), labels)
    return (inputs[:train_size], labels[:train_size]), (inputs[train_size:], labels[train_size:])


@cache
def numbers():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(700, 2, generator=generator)
    targets = (6 * inputs[:, 0]).sin() + 0.3 * torch.randn(700, generator=generator)
    return (inputs[:300], targets[:300]), (inputs[300:], targets[300:])


class NormNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@cache
def fitted(posterior, epochs=20, model=SMALL, optimizer=None, task="classes", label_noise=0.0, train_size=300):
    train, val = numbers() if task == "numbers" else classes(label_noise, train_size)
    config = TrainingConfig(epochs=epochs, batch_size=32, optimizer=optimizer)
    return fit(model, train, posterior, Plain(), config, val=val, show_progress=False)


def validation(task="classes", label_noise=0.0, train_size=300):
    return numbers()[1] if task == "numbers" else classes(label_noise, train_size)[1]


def draw_targets(posterior, seed=0):
    """Targets from the predictive distribution itself."""
    inputs = validation("numbers" if isinstance(posterior.likelihood, Gaussian) else "classes")[0]
    predictive, generator = posterior.predict(inputs), torch.Generator().manual_seed(seed)
    if isinstance(posterior.likelihood, Gaussian):
        return inputs, predictive.mean + predictive.std * torch.randn(len(inputs), generator=generator)
    return inputs, torch.multinomial(predictive.mean, 1, generator=generator)[:, 0]


def permuted_chain():
    """A chain whose snapshots are in random order: its halves agree."""
    chain = fitted(SGLD(), 10)
    state = chain.states[0]
    count, rows = chain.posterior.count_stored_snapshots(state), state.statistics["snapshots"]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    statistics = {**state.statistics, "snapshots": torch.cat([rows[:count][order], rows[count:]])}
    return replace_states(chain, [replace(state, statistics=statistics)])


def replace_states(posterior, states):
    return flatbayes.FittedPosterior(
        posterior.posterior, states, posterior.likelihood, posterior.transform, info=posterior.info
    )


def diverged():
    with pytest.warns(UserWarning, match="diverged"):
        return fitted(MAP(), 6, optimizer=partial(SGD, lr=8.0, momentum=0.9))


def stale_statistics():
    posterior = fitted(MAP(), 10, NormNet)
    inputs, labels = validation()
    return posterior, (3 * inputs + 2, labels)


def well(**options):
    return fitted(Laplace(), **options)


CASES = {
    "diverged": (diverged, well),
    "too_few_steps": (lambda: fitted(MAP(), 3, optimizer=partial(SGD, lr=0.003, momentum=0.9)), well),
    "too_many_steps": (
        lambda: (fitted(MAP(), 40, MLP, label_noise=0.4, train_size=150), validation("classes", 0.4, 150)),
        well,
    ),
    "one_network": (lambda: fitted(SWAG(rank=2, scale=1e-6), 10), well),
    "wide_posterior": (lambda: fitted(Laplace(prior_precision=1e-3, temperature=100.0), 10), well),
    "confidence": (
        lambda: (fitted(MAP(), 40, MLP, label_noise=0.4, train_size=150), validation("classes", 0.4, 150)),
        lambda: (well(), draw_targets(well())),
    ),
    "coverage": (
        lambda: (fitted(SWAG(rank=2), task="numbers"), (validation("numbers")[0], 2 * validation("numbers")[1])),
        lambda: (fitted(SWAG(rank=2), task="numbers"), draw_targets(fitted(SWAG(rank=2), task="numbers"))),
    ),
    "mixing": (lambda: fitted(SGLD(), 10), permuted_chain),
    "collapse": (
        lambda: fitted(SGVB(temperature=100.0), 8, optimizer=partial(ADAM, lr=0.03)),
        lambda: fitted(SGVB(), 8, optimizer=partial(ADAM, lr=0.03)),
    ),
    "laplace_width": (lambda: fitted(Laplace("kron"), 5), lambda: fitted(Laplace("kron", temperature=1e-3), 5)),
    "norm_statistics": (stale_statistics, lambda: fitted(MAP(), 10, NormNet)),
    "inputs_outside": (lambda: (well(), (1.5 * validation()[0], validation()[1])), well),
    "duplicates": (lambda: (well(), classes()[0]), well),
}


def run_case(case, **options):
    result = case()
    posterior, data = result if isinstance(result, tuple) else (result, None)
    if data is None:
        data = validation("numbers" if isinstance(posterior.likelihood, Gaussian) else "classes")
    return posterior.check(*data, **options)


@pytest.mark.parametrize("name", [entry.name for entry in CHECKS])
@pytest.mark.parametrize("trips", [True, False])
def test_case(name, trips):
    finding = run_case(CASES[name][not trips])[name]
    assert finding.passed is not trips, finding.format()
    assert finding.remedy
    if trips:
        assert finding.message.startswith(finding.problem)
    else:
        assert finding.problem not in finding.format()


@pytest.mark.parametrize("posterior", [LRT(), IVON(), BSAM(beta2=0.9999)], ids=short_name)
def test_a_variational_posterior_that_has_not_moved_is_not_learnt(posterior):
    report = fitted(posterior, 2).check(*validation())
    assert not report["collapse"].passed
    assert "started" in report["collapse"].message


@pytest.mark.parametrize("posterior", [SGVB(), LRT(), IVON(), BSAM()], ids=short_name)
def test_a_collapsed_posterior_is_told_options_that_it_has(posterior, monkeypatch):
    monkeypatch.setattr(gaussians, "MAX_UNCHANGED_SHARE", 1.0)
    monkeypatch.setattr(gaussians, "MIN_INFORMATION", 1.0)
    finding = fitted(posterior, 2).check(*validation())["collapse"]
    assert "collapsed" in finding.message
    assert_options_exist(finding, posterior)


def assert_options_exist(finding, posterior):
    """The remedy names options of the posterior, or of the training."""
    posterior = getattr(posterior, "member", posterior)
    for name in re.findall(r"([a-z_]+) ?=", finding.remedy):
        assert hasattr(posterior, name) or hasattr(TrainingConfig(), name) or name == "clip_norm", finding.remedy
    assert not re.search(r"^, |, ,|: *$|\(now \d\.\d{6}", finding.remedy), finding.remedy


def test_particles_are_not_a_chain():
    report = fitted(posteriors.SVGD(num_particles=4), 3).check(*validation(), num_draws=4)
    assert "particles" in report.skipped["mixing"]


def test_confidence_of_numbers():
    posterior = fitted(SWAG(rank=2), task="numbers")
    inputs, targets = validation("numbers")
    assert "overconfident" in posterior.check(inputs, 3 * targets)["confidence"].problem
    assert posterior.check(*draw_targets(posterior))["confidence"].passed
    calm = posterior.check(inputs, posterior.predict(inputs).mean)
    assert "underconfident" in calm["confidence"].problem
    assert "scale" in calm["confidence"].remedy
    point = fitted(MAP(), task="numbers")
    calm_point = point.check(inputs, point.predict(inputs).mean)["confidence"]
    assert "underconfident" in calm_point.problem
    assert not re.search("scale|dropout|temperature", calm_point.remedy)  # a point has none of these
    assert not calm["coverage"].passed


CHOSEN = {MCDropout: MCDropout(rate=0.1), SWAG: SWAG(rank=2), Laplace: Laplace("diag", "sampled")}
POSTERIORS = [
    CHOSEN.get(kind) or kind()
    for kind in (getattr(posteriors, name) for name in posteriors.__all__)
    if isinstance(kind, type) and issubclass(kind, posteriors.Posterior) and kind is not posteriors.Posterior
] + [Ensemble(SWAG(rank=2), size=2), Ensemble(SGHMC(), size=2), Ensemble(Laplace(), size=2)]


@pytest.mark.parametrize(
    ("posterior", "task"),
    [*zip(POSTERIORS, cycle(["classes", "numbers"]), strict=False)],
    ids=lambda value: value if isinstance(value, str) else short_name(value),
)
def test_every_check_gives_a_finding_or_a_reason(posterior, task):
    model = MLP if isinstance(posterior, MCDropout) else SMALL
    member = fitted(posterior, 3, model, task=task)
    before = torch.get_rng_state()
    report = member.check(*validation(task), num_draws=6)
    assert torch.equal(torch.get_rng_state(), before)
    names = [finding.name for finding in report.findings]
    assert sorted([*names, *report.skipped]) == sorted(entry.name for entry in CHECKS)
    assert [finding.passed for finding in report.findings] == sorted(finding.passed for finding in report.findings)
    assert all(finding.threshold and not finding.message[0].islower() for finding in report.findings)
    assert all(math.isfinite(finding.value) or finding.name == "too_many_steps" for finding in report.findings)
    for finding in report.findings:
        assert_options_exist(finding, posterior)
    again = member.check(*validation(task), num_draws=6)
    assert str(again.to_dict()) == str(report.to_dict())


def test_report_reads_what_it_writes_and_shows_itself():
    report = run_case(CASES["one_network"][0])
    assert CheckReport.from_dict(report.to_dict()) == report
    assert not report.passed
    assert "one_network" in repr(report)
    text = report.summary()
    assert all(finding.format() in text for finding in report.findings)
    assert report["one_network"].remedy in text
    assert report.skipped["mixing"] in text
    assert "**" not in report._repr_html_()
    assert len(report.to_pandas()) == len(report.findings)
    assert len(report.format_failures()) == len(report.failed)
    with pytest.raises(KeyError, match="chain"):
        report["mixing"]


@pytest.mark.parametrize(
    "change", [{"findings": 3}, {"skipped": {"a": 1}}, {"num_examples": "4"}, {"more": 1}, {"notes": [3]}]
)
def test_damaged_reports_are_refused(change):
    data = CheckReport((Finding("a", True, "b", "c", 1.0, "d"),), {}, 3, 4).to_dict()
    with pytest.raises(ValueError, match="report"):
        CheckReport.from_dict({**data, **change})


def test_the_check_predicts_once_with_an_evaluation(monkeypatch):
    posterior, (inputs, labels) = fitted(SWAG(rank=2), 10), validation()
    calls = []
    stream = flatbayes.FittedPosterior.stream_predictions
    monkeypatch.setattr(
        flatbayes.FittedPosterior,
        "stream_predictions",
        lambda self, data, *args, **options: calls.append(len(data)) or stream(self, data, *args, **options),
    )
    with posterior.share_predictions():
        flatbayes.evaluate(posterior, inputs, labels)
        check(posterior, inputs, labels)
    assert calls == [400, 256]  # the second is that of the central network


def test_examples_without_a_label_are_left_out():
    posterior, (inputs, labels) = fitted(SWAG(rank=2), 10), validation()
    masked = labels.clone()
    masked[::2] = -100
    half, alone = posterior.check(inputs, masked), posterior.check(inputs[1::2], labels[1::2])
    assert half.num_examples == 200
    assert half["wide_posterior"].value == pytest.approx(alone["wide_posterior"].value, abs=1e-6)


def test_a_remedy_does_not_propose_the_choice_that_was_made():
    posterior, (inputs, labels) = fitted(SWAG(rank=2, scale="auto"), 10), validation()
    scale = posterior.info["training"]["draw_options"]["scale"]["value"]
    report = posterior.check(inputs, labels, 3)
    assert f"a larger scale than {scale:.4g}, which validation examples chose" in report["one_network"].remedy
    assert f"a smaller scale than {scale:.4g}, which" in report["wide_posterior"].remedy


def test_the_statistics_of_a_linearised_network_are_those_of_its_network():
    findings = [fitted(posterior, 10, NormNet).check(*validation())["norm_statistics"] for posterior in
                (MAP(), Laplace("last_layer", "linearised"))]  # fmt: skip
    assert findings[0].passed
    assert findings[0].value == findings[1].value


def test_without_training_inputs_no_other_networks_are_drawn_and_remedies_name_the_scale_in_use():
    posterior, (inputs, labels) = fitted(SWAG(rank=2), 10, NormNet), validation()
    report = posterior.check(inputs, labels, 3)
    assert "(now 0.5)" in report["one_network"].remedy
    assert "(now 0.5)" in report["wide_posterior"].remedy
    kept = replace(posterior, statistics_inputs=())  # with the statistics of the draws
    report = kept.check(inputs, labels, 3)
    assert "BatchNorm statistics of other networks" in report.skipped["wide_posterior"]


def test_a_loader_is_read_once_and_checks_without_inputs_are_skipped():
    inputs, labels = validation()
    batches = [(inputs[:200], labels[:200]), (inputs[200:], labels[200:])]
    report = fitted(SWAG(rank=2), 10).check(iter(batches))
    assert report.num_examples == 400
    assert "one tensor" in report.skipped["wide_posterior"]


def test_p_values_are_corrected_for_the_number_of_tests():
    kept = Finding("a", False, "", "", 2.0, "", p_value=0.4 * SIGNIFICANCE)
    chance = replace(kept, name="b", p_value=0.6 * SIGNIFICANCE)
    untested = replace(kept, name="c", p_value=None)
    corrected = {finding.name: finding for finding in correct_p_values([kept, chance, untested])}
    assert {name: finding.passed for name, finding in corrected.items()} == {"a": False, "b": True, "c": False}
    assert corrected["a"].p_value == pytest.approx(0.8 * SIGNIFICANCE)


def test_a_plain_training_has_a_forecast_of_whether_flatness_pays():
    report = well().check(*validation())
    assert report.notes[0].startswith("Forecast: ")
    assert report.notes[0] in report.summary()
    train, val = classes()
    flat = fit(SMALL, train, MAP(), flatbayes.SAM(), TrainingConfig(epochs=2), val=val, show_progress=False)
    assert flat.check(*val).notes == ()


def test_curves():
    assert measure_late_fall([1, 2, 3, 4, 5], [5.0, 4.0, 3.0, 2.0, 1.0]) == (1.0, 0.25)
    assert measure_late_fall([10, 11], [5.0, 3.0]) == (2.0, 1.0)  # the late part began before the first value
    assert measure_rise([3.0, 1.0, 2.0, 1.5]) == (0.5, 0.25, 1)
    assert measure_rise([1.0, 2.0]) == (1.0, math.inf, 0)
    assert measure_rise([2.0, 1.0]) == (0.0, 0.0, 1)


def test_constant_prediction():
    targets = torch.tensor([1.0, 4.0, 7.0, 8.0])
    likelihood = Gaussian.fit(targets)
    normal = torch.distributions.Normal(targets.mean(), targets.std(correction=0))
    nll, num_targets = compute_constant_nll(likelihood)
    assert (nll, num_targets) == (pytest.approx(float(-normal.log_prob(targets).mean())), 1)
    assert compute_constant_nll(Custom(nn.functional.mse_loss, likelihood)) is None


def test_chance_bound_of_r_hat_holds_for_independent_draws():
    draws = torch.randn(2, 12, 2000, generator=torch.Generator().manual_seed(0))
    bound = find_chance_r_hat(2, 12)
    exceeding = sum(summarize_chains(draws[..., k : k + 1])[0] > bound for k in range(150)) / 150
    assert exceeding < 0.05  # R-hat of ranks takes the larger of two statistics


def test_worst_layer():
    current = {"a.running_mean": torch.zeros(3), "a.running_var": torch.ones(3)}
    estimated = {"a.running_mean": torch.tensor([2.0, 2.0, 0.0]), "a.running_var": torch.full((3,), 4.0)}
    assert find_worst_layer(current, estimated) == ("a", 1.0, pytest.approx(math.log(4)))


def test_centre_of_a_posterior():
    assert make_centre(fitted(Ensemble(size=2), 5)) is None
    swag = fitted(Ensemble(SWAG(rank=2), size=2), 5)
    assert make_centre(swag).posterior == Ensemble(SWAG(rank=2, scale=1e-12), size=2)
    assert make_centre(fitted(MCDropout(rate=0.1), 3, MLP)).posterior == MAP()
    spread = [
        float(make_centre(fitted(posterior, 5)).predict(validation()[0], 5).variance.max())
        for posterior in (SGVB(), Laplace(), SGLD(), SWAG(rank=2))
    ]
    assert max(spread) < 1e-6


def test_weights_of_early_stopping_are_not_those_of_the_end():
    train, val = classes(0.4, 150)
    config = TrainingConfig(epochs=40, batch_size=32, early_stopping=True)
    stopped = fit(MLP, train, MAP(), Plain(), config, val=val, show_progress=False)
    assert "early stopping" in stopped.check(*val).skipped["too_many_steps"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.06, 0.1, 0.17], ""),
        ([0.07, 0.06, 0.17], ""),
        (
            [0.06, 0.9],
            "the training loss is 0.9 at the end, 80.9 % of the way back to a constant prediction above the 0.06",
        ),
        ([1.2, 0.5, 0.9], "57.1 % of its fall above the 0.5 of epoch 2"),
    ],
    ids=["rises", "falls", "far", "new"],
)
def test_a_trained_network_whose_loss_rises_a_little_has_not_diverged(losses, words):
    history = {
        "epoch": [*range(1, len(losses) + 1)],
        "loss": losses,
        "lr": [0.1] * len(losses),
        "val_nll": [None] * len(losses),
    }
    posterior = replace(fitted(MAP(), 2), info={"training": {"history": history}})
    finding = posterior.check(*validation())["diverged"]
    assert finding.passed is not bool(words)
    assert words in finding.message
