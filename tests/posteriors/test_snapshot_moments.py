"""SWAG without its first or last snapshots: the moments are those of the others."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import SGHMC, SGLD, SWAG, EntropyMCMC, FittedPosterior, Plain, evaluate, fit
from flatbayes.core import State
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import DataSplits, Split
from flatbayes.posteriors import Ensemble
from flatbayes.posteriors.draw_options import list_auto_options
from flatbayes.posteriors.snapshot_moments import FIRST, Window
from flatbayes.posteriors.swag import gaussian_sample
from flatbayes.training import FINE_TUNING, Constant, TrainingConfig

WEIGHTS = slice(None)


def collect(posterior: SWAG, num_snapshots: int, network: nn.Module | None = None) -> tuple[State, torch.Tensor]:
    """A state after snapshots of a network that starts far away, and these as rows, in float64."""
    network = nn.Linear(3, 2).double() if network is None else network
    state, rows = posterior.init(network, None, 10), []
    generator = torch.Generator().manual_seed(0)
    params = trainable_parameters(state.model)
    for k in range(num_snapshots):
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param.data.copy_(noise + 100 * 0.5**k)
        rows.append(torch.cat([param.detach().flatten() for param in params]))
        posterior.collect(state)
    return state, torch.stack(rows)


@pytest.mark.parametrize(
    ("num_snapshots", "burn_in", "end_fraction", "start", "end"),
    [
        (39, 0.0, 1.0, 0, 39),
        (39, 0.125, 1.0, 8, 39),  # 4.9; the first four are not kept any more
        (39, 0.25, 1.0, 8, 39),
        (39, 0.5, 1.0, 16, 39),
        (123, 0.125, 1.0, 16, 123),
        (123, 0.25, 1.0, 32, 123),
        (123, 0.5, 1.0, 64, 123),
        (52, 0.5, 1.0, 32, 52),
        (42, 0.5, 1.0, 16, 42),  # 32 would be more than three quarters
        (128, 0.5, 1.0, 64, 128),
        (7, 0.5, 1.0, 4, 7),
        (8, 0.5, 1.0, 4, 8),
        (3, 0.5, 0.25, 0, 3),  # nothing is kept yet
        (48, 0.0, 0.75, 0, 32),
        (48, 0.0, 0.25, 0, 8),
        (48, 0.25, 0.75, 8, 32),
        (123, 0.5, 0.5, 32, 64),
        (123, 0.5, 0.25, 16, 32),
        (32, 0.0, 0.5, 0, 16),
        (5, 0.5, 0.75, 0, 4),
    ],
)
@pytest.mark.parametrize("rank", [0, 2, 5, 20])
def test_moments_are_those_of_the_snapshots_in_the_window(num_snapshots, burn_in, end_fraction, start, end, rank):
    state, rows = collect(SWAG(rank=rank, burn_in="auto"), num_snapshots)
    window, inside = Window.find(state.statistics, burn_in, end_fraction), rows[start:end]
    assert (window.start.count, window.end.count, window.count) == (start, end, len(inside))
    torch.testing.assert_close(window.get_mean(WEIGHTS), inside.mean(0))
    torch.testing.assert_close(window.get_variance(WEIGHTS), inside.var(0, correction=0))
    spacing = min(2**k for k in range(10) if num_snapshots // 2**k <= rank) if rank else num_snapshots
    stored = [k for k in range(start, end) if (k + 1) % spacing == 0 and rank]
    deviations = window.get_deviations(WEIGHTS)
    assert len(deviations) == window.num_deviations
    torch.testing.assert_close(deviations, (rows - inside.mean(0))[stored if len(stored) > 1 else []])


def test_without_a_choice_deviations_are_those_of_the_last_snapshots_from_the_means_so_far():
    state, rows = collect(SWAG(rank=5), 32)
    window = Window.find(state.statistics)
    means = torch.stack([rows[: k + 1].mean(0) for k in range(32)])
    deviations, expected = window.get_deviations(WEIGHTS), (rows - means)[27:]
    assert FIRST not in state.statistics
    assert window.num_deviations == 5
    torch.testing.assert_close(deviations[deviations[:, 0].argsort()], expected[expected[:, 0].argsort()])
    few, _ = collect(SWAG(rank=20), 16)
    assert Window.find(few.statistics).num_deviations == 16


def test_an_offset_is_subtracted_from_every_deviation():
    generator = torch.Generator().manual_seed(0)
    rows, z2 = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    mean, variance, z1, offset = torch.rand(4, 6, generator=generator)
    expected = gaussian_sample(mean, variance, rows - offset, 0.5, z1, z2)
    torch.testing.assert_close(gaussian_sample(mean, variance, rows, 0.5, z1, z2, offset), expected)


def test_draws_have_the_covariance_of_the_window():
    posterior = SWAG(rank=5, scale=1.0, burn_in=0.25, end_fraction=0.75)
    state, rows = collect(posterior, 40)
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        weights = torch.cat([param.detach().flatten() for param in drawn.parameters()])
    window, noise = posterior.find_window(state), torch.Generator().manual_seed(0)
    z2 = torch.randn(window.num_deviations, generator=noise, dtype=torch.float64)
    z1 = torch.randn(8, generator=noise, dtype=torch.float64)
    inside = rows[8:32]
    deviations = rows[[15, 23, 31]] - inside.mean(0)
    expected = gaussian_sample(inside.mean(0), inside.var(0, correction=0), deviations, 1.0, z1, z2)
    torch.testing.assert_close(weights, expected)


def test_differences_are_rounded_where_they_are_stored_in_bfloat16():
    state, rows = collect(SWAG(rank=5, burn_in="auto", bfloat16=True), 32)
    deviations = Window.find(state.statistics).get_deviations(WEIGHTS)
    differences = (rows[[7, 15, 23, 31]] - rows[0]).bfloat16().to(rows)
    torch.testing.assert_close(deviations, differences + rows[0] - rows.mean(0))


def test_draws_leave_the_first_snapshots_out_also_of_weights_without_a_distribution():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    posterior = SWAG(rank=0, scale=0.0, burn_in=0.25, params="last_layer")
    state, rows = collect(posterior, 32, network)
    with posterior.draw(state, torch.Generator()) as drawn:
        weights = torch.cat([param.detach().flatten() for param in drawn.parameters()])
    torch.testing.assert_close(weights, rows[8:].mean(0))
    all_of_them = replace(posterior, burn_in="auto")  # not chosen yet
    with all_of_them.draw(state, torch.Generator()) as drawn:
        weights = torch.cat([param.detach().flatten() for param in drawn.parameters()])
    torch.testing.assert_close(weights, rows.mean(0))
    early = replace(posterior, end_fraction=0.5)
    with early.draw(state, torch.Generator()) as drawn:
        weights = torch.cat([param.detach().flatten() for param in drawn.parameters()])
    torch.testing.assert_close(weights, rows[:16].mean(0))


@pytest.mark.parametrize("options", [{}, {"burn_in": 0.0, "end_fraction": 1.0}])
def test_without_a_choice_no_moments_are_kept(options):
    state, _ = collect(SWAG(rank=2, **options), 16)
    assert set(state.statistics) == {"count", "mean", "sum_squares", "deviations"}
    for name, value in {"burn_in": 0.25, "end_fraction": 0.5}.items():
        state, _ = collect(SWAG(rank=2, **{name: value}), 16)
        assert FIRST in state.statistics


@pytest.mark.parametrize(
    ("name", "value"),
    [("burn_in", value) for value in (-0.1, 0.6, 1.0, float("nan"))]
    + [("end_fraction", value) for value in (0.0, 0.2, 1.1, float("nan"))],
)
def test_other_values_are_refused(name, value):
    limits = {"burn_in": "from 0 to 0.5", "end_fraction": "from 0.25 to 1"}[name]
    with pytest.raises(ValueError, match=f"{name} is a fraction of the snapshots, {limits}"):
        SWAG(**{name: value})


def test_it_is_chosen_for_trained_networks_only():
    assert SWAG().with_automatic_options().burn_in is None
    assert SWAG().with_automatic_options(is_trained=True).burn_in == "auto"
    given = SWAG(burn_in=0.25).with_automatic_options(is_trained=True)
    assert (given.burn_in, given.end_fraction) == (0.25, "auto")
    assert SWAG(end_fraction=1.0).with_automatic_options(is_trained=True).end_fraction == 1.0
    assert Ensemble(SWAG()).with_automatic_options(is_trained=True).member.burn_in == "auto"
    automatic = SWAG(burn_in="auto", end_fraction="auto")
    assert list(list_auto_options(automatic.draw_options, automatic)) == ["end_fraction", "burn_in"]


class Normed(nn.Sequential):
    """A network that counts as trained."""

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
        with torch.no_grad():
            self[1].weight.mul_(torch.rand(16, generator=torch.Generator().manual_seed(0)) + 0.5)


def make_splits() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 4, generator=generator)
    targets = (inputs[:, 0] + 0.3 * torch.randn(160, generator=generator) > 0).long()
    train, val = (Split(inputs=inputs[rows], targets=targets[rows]) for rows in (slice(80), slice(80, 160)))
    return DataSplits(train=train, val=val, test=val, class_names=("a", "b"), feature_names=(), augment=None)


def fit_wrong_labels(data: DataSplits) -> FittedPosterior:
    """A training that learns wrong labels by heart in the end."""
    wrong = torch.rand(80, generator=torch.Generator().manual_seed(1)) < 0.3
    train = replace(data.train, targets=torch.where(wrong, 1 - data.train.targets, data.train.targets))
    config = FINE_TUNING.with_options(
        optimizer=partial(torch.optim.Adam, lr=0.03), schedule=Constant(), batch_size=8, epochs=32, num_validations=0
    )
    posterior = Ensemble(SWAG(burn_in="auto", end_fraction="auto"), 2)
    return fit(Normed, replace(data, train=train), posterior, Plain(), config)


def test_the_last_snapshots_are_left_out_where_draws_from_the_first_ones_are_better():
    data = make_splits()
    fitted = fit_wrong_labels(data)
    choices = fitted.info["training"]["draw_options"]
    end, burn_in = (choices[f"member.{name}"] for name in ("end_fraction", "burn_in"))
    nlls = dict(map(tuple, end["val_nll"]))
    assert [*choices] == ["member.end_fraction", "member.burn_in"]
    assert fitted.posterior.member.end_fraction == end["value"] < 1
    assert fitted.posterior.member.burn_in == 0  # other values would be the same snapshots
    for value, expected in nlls.items():
        member = replace(fitted.posterior.member, end_fraction=value, burn_in=0.0)
        early = replace(fitted, posterior=replace(fitted.posterior, member=member))
        assert evaluate(early, data.val).metrics["nll"] == pytest.approx(expected, rel=1e-5)
    assert dict(map(tuple, burn_in["val_nll"]))[0.0] == pytest.approx(nlls[end["value"]])


def test_a_slow_start_is_left_out_and_the_artefact_draws_the_same(tmp_path):
    data = make_splits()
    config = FINE_TUNING.with_options(optimizer=partial(torch.optim.SGD, lr=0.02), batch_size=16)
    fitted = fit(Normed(), data, SWAG(rank=3), Plain(), config)
    choice = fitted.info["training"]["draw_options"]["burn_in"]
    assert choice["value"] == fitted.posterior.burn_in > 0
    assert [value for value, _ in choice["val_nll"]] == [0.0, 0.125, 0.25, 0.5]
    nlls = dict(map(tuple, choice["val_nll"]))
    assert nlls[choice["value"]] == min(nlls.values()) < nlls[0.0]
    loaded = FittedPosterior.load(fitted.save(tmp_path / "swag"), Normed)
    inputs = data.test.inputs
    assert torch.equal(loaded.predict(inputs, 3).log_probs, fitted.predict(inputs, 3).log_probs)


@pytest.mark.parametrize("storage", ["device", "cpu"])
def test_an_artefact_whose_choice_is_all_snapshots_is_loaded(tmp_path, storage):
    data, config = make_splits(), TrainingConfig(epochs=4, batch_size=16)
    fitted = fit(Normed(), data, SWAG(rank=3, burn_in="auto", storage=storage), Plain(), config)
    without = replace(fitted, posterior=replace(fitted.posterior, burn_in=0.0))
    loaded = FittedPosterior.load(without.save(tmp_path / "swag"), Normed)
    inputs = data.test.inputs
    assert torch.equal(loaded.predict(inputs, 3).log_probs, without.predict(inputs, 3).log_probs)


@pytest.mark.parametrize("posterior_class", [SGLD, SGHMC, EntropyMCMC])
def test_samplers_draw_the_later_ones_of_the_stored_snapshots(posterior_class):
    posterior = posterior_class(max_snapshots=10)
    state, rows = collect(posterior, 9)
    late = replace(posterior, burn_in=0.5)
    networks_per_row = 2 if posterior_class is EntropyMCMC else 1
    assert late.count_stored_snapshots(state) == 5 * networks_per_row  # round(4.5) is 4
    for index in range(5):
        with late.load_snapshot(state, networks_per_row * index) as network:
            weights = torch.cat([param.detach().flatten() for param in network.parameters()])
        torch.testing.assert_close(weights, rows[4 + index])
    if posterior_class is not EntropyMCMC:
        with replace(late, scale=0.25).load_snapshot(state, 0) as network:
            weights = torch.cat([param.detach().flatten() for param in network.parameters()])
        torch.testing.assert_close(weights, (rows[4] + rows[4:].mean(0)) / 2)
    assert posterior.with_automatic_options(is_trained=True).burn_in == "auto"
    assert "burn_in" in replace(posterior, burn_in="auto").draw_options
    assert posterior.with_automatic_options().burn_in is None
