"""SWAG without its first snapshots: the moments are those of the later ones."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import SGHMC, SGLD, SWAG, EntropyMCMC, FittedPosterior, Plain, fit
from flatbayes.core import State
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import DataSplits, Split
from flatbayes.posteriors import Ensemble
from flatbayes.posteriors.burn_in import EARLY, Window
from flatbayes.posteriors.draw_options import list_auto_options
from flatbayes.training import FINE_TUNING, TrainingConfig

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
    ("num_snapshots", "fraction", "num_early"),
    [
        (39, 0.0, 0),
        (39, 0.125, 8),  # 4.9; the first four are not kept any more
        (39, 0.25, 8),
        (39, 0.5, 16),
        (123, 0.125, 16),
        (123, 0.25, 32),
        (123, 0.5, 64),
        (52, 0.5, 32),
        (42, 0.5, 16),  # 32 would be more than three quarters
        (128, 0.5, 64),
        (7, 0.5, 4),
        (8, 0.5, 4),
        (3, 0.5, 0),
    ],
)
def test_moments_are_those_of_the_later_snapshots(num_snapshots, fraction, num_early):
    state, rows = collect(SWAG(rank=5, burn_in="auto"), num_snapshots)
    window, late = Window.find(state.statistics, fraction), rows[num_early:]
    assert (window.num_early, window.count) == (num_early, len(late))
    torch.testing.assert_close(window.get_mean(WEIGHTS), late.mean(0))
    torch.testing.assert_close(window.get_variance(WEIGHTS), late.var(0, correction=0))
    deviations = window.get_deviations(WEIGHTS)
    assert len(deviations) == window.num_deviations == min(5, len(late))


def test_deviations_are_those_of_the_last_snapshots_from_the_mean_of_the_window():
    state, rows = collect(SWAG(rank=5, burn_in="auto"), 32)
    deviations = Window.find(state.statistics, 0.5).get_deviations(WEIGHTS)
    means = torch.stack([rows[: k + 1].mean(0) for k in range(32)])  # each is taken from the mean so far
    expected = rows[27:] - means[27:] + means[-1] - rows[16:].mean(0)
    order = deviations[:, 0].argsort()
    torch.testing.assert_close(deviations[order], expected[expected[:, 0].argsort()])
    few, _ = collect(SWAG(rank=20, burn_in="auto"), 16)
    assert Window.find(few.statistics, 0.5).num_deviations == 8


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


@pytest.mark.parametrize("burn_in", [None, 0.0])
def test_without_a_burn_in_no_moments_are_kept(burn_in):
    state, _ = collect(SWAG(rank=2, burn_in=burn_in), 16)
    assert not any(name.startswith(EARLY) for name in state.statistics)


@pytest.mark.parametrize("burn_in", [-0.1, 0.6, 1.0, float("nan")])
def test_other_values_are_refused(burn_in):
    with pytest.raises(ValueError, match=r"burn_in is a fraction of the snapshots, from 0 to 0.5"):
        SWAG(burn_in=burn_in)


def test_it_is_chosen_for_trained_networks_only():
    assert SWAG().with_automatic_options().burn_in is None
    assert SWAG().with_automatic_options(is_trained=True).burn_in == "auto"
    assert SWAG(burn_in=0.25).with_automatic_options(is_trained=True).burn_in == 0.25
    assert Ensemble(SWAG()).with_automatic_options(is_trained=True).member.burn_in == "auto"
    automatic = SWAG(burn_in="auto")
    assert list(list_auto_options(automatic.draw_options, automatic)) == ["burn_in"]


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


def test_an_artefact_whose_choice_is_no_burn_in_is_loaded(tmp_path):
    data, config = make_splits(), TrainingConfig(epochs=4, batch_size=16)
    fitted = fit(Normed(), data, SWAG(rank=3, burn_in="auto"), Plain(), config)
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
