"""Slices and plane of several posteriors."""

import copy

import pytest
import torch
from torch import nn

from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import Standardize
from flatbayes.diagnostics import LossSurface, compute_draw_slices, compute_solution_plane, loss_at, plane_through
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior
from support import assert_same, batch, network, snapshot, train


def fit_posterior(posterior, seed=0, model=None):
    states = []
    for k in range(posterior.num_members):
        net = copy.deepcopy(model) if model else network()
        with torch.no_grad():
            list(net.children())[-1].weight.mul_(1 + seed + k)
        states.append(train(posterior, Plain(), model=net)[0])
    for state in states:
        state.model.eval()
    inputs = [batch(k)[0] for k in range(3)]
    return FittedPosterior(posterior, states, Categorical(3), Standardize.fit(torch.cat(inputs)), inputs)


def make_examples():
    return batch(5)


def flatten_weights(fitted, member=0):
    return flatten(trainable_parameters(fitted.states[member].model)).double()


def test_three_solutions_lie_in_the_plane():
    fitteds = {"a": fit_posterior(MAP()), "b": fit_posterior(SWAG(rank=2), 1), "c": fit_posterior(MCDropout(), 2)}
    before = {name: snapshot(fitted.states[0].model) for name, fitted in fitteds.items()}
    grid = compute_solution_plane(fitteds, *make_examples(), 2, num_steps=3)
    for name, fitted in fitteds.items():
        assert_same(before[name], snapshot(fitted.states[0].model))
    assert list(grid.points) == list(grid.draws) == ["a", "b", "c"]
    assert all(rest == pytest.approx(0, abs=1e-6) for _, _, rest in grid.points.values())
    for one, other in [("a", "b"), ("b", "c")]:
        (x1, y1, _), (x2, y2, _) = grid.points[one], grid.points[other]
        apart = float((flatten_weights(fitteds[one]) - flatten_weights(fitteds[other])).norm())
        assert ((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5 == pytest.approx(apart, rel=1e-9)
    assert [len(grid.draws[name]) for name in "abc"] == [1, 2, 2]
    assert grid.draws["a"][0] == pytest.approx(grid.points["a"], abs=1e-6)
    assert grid.draws["c"][0] == pytest.approx(grid.points["c"], abs=1e-6)  # its draws differ in masks alone
    assert grid.draws["b"][0][2] > 0
    assert len(grid.losses) == len(grid.losses[0]) == 3
    assert grid == compute_solution_plane(fitteds, *make_examples(), 2, num_steps=3)


def test_grid_is_the_loss_over_the_plane():
    fitteds = {"a": fit_posterior(MAP()), "b": fit_posterior(MAP(), 1), "c": fit_posterior(MAP(), 2)}
    grid = compute_solution_plane(fitteds, *make_examples(), 0, num_steps=3)
    surface = LossSurface(
        fitteds["a"].states[0].model, Categorical(3).loss, prepare_batches(fitteds["a"], *make_examples())
    )
    plane = plane_through(*(flatten_weights(fitted) for fitted in fitteds.values()))
    assert grid.losses[0][2] == loss_at(surface, plane.point_at(grid.xs[2], grid.ys[0]))
    statistics = [batch(7)[0]]
    again = compute_solution_plane(fitteds, *make_examples(), 0, num_steps=3, norm_batches=statistics)
    ready = [fitteds["a"].transform(statistics[0])]
    assert again.xs == grid.xs
    assert again.losses[0][2] == loss_at(surface, plane.point_at(grid.xs[2], grid.ys[0]), ready) != grid.losses[0][2]


@pytest.mark.parametrize(
    ("posterior", "names"), [(MAP(), ["x"]), (Ensemble(size=3), ["x run 1", "x run 2", "x run 3"])]
)
def test_one_posterior_suffices(posterior, names):
    grid = compute_solution_plane({"x": fit_posterior(posterior)}, *make_examples(), 3, num_steps=2)
    assert list(grid.points) == names
    assert all(rest == pytest.approx(0, abs=1e-5) for _, _, rest in grid.points.values())


def test_draws_replace_missing_solutions():
    fitteds = {"a": fit_posterior(SWAG(rank=2)), "b": fit_posterior(MAP(), 1)}
    grid = compute_solution_plane(fitteds, *make_examples(), 2, num_steps=2)
    assert grid.draws["a"][0][2] == pytest.approx(0, abs=1e-6)
    assert grid.draws["a"][1][2] > 1e-4


def test_slices_contain_the_draws():
    fitteds = {
        "a": fit_posterior(SWAG(rank=2)),
        "b": fit_posterior(MAP(), 1),
        "c": fit_posterior(MCDropout(rate=0.5), 2),
    }
    slices = compute_draw_slices(fitteds, *make_examples(), 3, num_steps=3)
    assert {name: len(some) for name, some in slices.items()} == {"a": 3, "b": 3, "c": 3}
    for name, fitted in fitteds.items():
        keys = fitted.sample_ids(3)
        for k, one in enumerate(slices[name]):
            with fitted.sampled_network(keys[k % len(keys)]) as model:
                surface = LossSurface(
                    model, Categorical(3).loss, prepare_batches(fitted, *make_examples()), keep_mode=True
                )
                assert one.losses[1] == pytest.approx(surface.loss(), rel=1e-6)
            assert one.distances == (-1.0, 0.0, 1.0)
    assert len({one.losses[0] for one in slices["b"]}) == 3  # one network, three directions


def test_invalid_input_is_refused():
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="networks of equal shapes, and those of b differ from those of a"):
        compute_solution_plane({"a": fit_posterior(MAP()), "b": fit_posterior(MAP(), model=small)}, *make_examples())
    with pytest.raises(ValueError, match="at least one posterior, got none"):
        compute_solution_plane({}, *make_examples())
    with pytest.raises(ValueError, match="num_slices must be at least 1"):
        compute_draw_slices({"a": fit_posterior(MAP())}, *make_examples(), 0)
