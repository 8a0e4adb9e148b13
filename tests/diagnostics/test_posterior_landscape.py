"""Several posteriors in one picture."""

import copy

import pytest
import torch
from torch import nn

from flatbayes.core.weights import flatten, trainable_parameters
from flatbayes.data import Standardize
from flatbayes.diagnostics import LossSurface, compute_draw_slices, compute_solution_plane, loss_at, plane_through
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior
from support import assert_same, batch, network, snapshot, train


def fit(posterior, seed=0, model=None):
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


def examples():
    return batch(5)


def weights(fitted, run=0):
    return flatten(trainable_parameters(fitted.states[run].model)).double()


def test_three_solutions_lie_in_their_plane_and_draws_near_it():
    fitteds = {"a": fit(MAP()), "b": fit(SWAG(rank=2), 1), "c": fit(MCDropout(), 2)}
    before = {name: snapshot(fitted.states[0].model) for name, fitted in fitteds.items()}
    found = compute_solution_plane(fitteds, *examples(), 2, num_steps=3)
    for name, fitted in fitteds.items():
        assert_same(before[name], snapshot(fitted.states[0].model))
    assert list(found.points) == list(found.draws) == ["a", "b", "c"]
    assert all(rest == pytest.approx(0, abs=1e-6) for _, _, rest in found.points.values())
    for one, other in [("a", "b"), ("b", "c")]:
        (x1, y1, _), (x2, y2, _) = found.points[one], found.points[other]
        apart = float((weights(fitteds[one]) - weights(fitteds[other])).norm())
        assert ((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5 == pytest.approx(apart, rel=1e-9)
    assert [len(found.draws[name]) for name in "abc"] == [1, 2, 2]
    assert found.draws["a"][0] == pytest.approx(found.points["a"], abs=1e-6)
    assert found.draws["c"][0] == pytest.approx(found.points["c"], abs=1e-6)  # its draws differ in masks alone
    assert found.draws["b"][0][2] > 0
    assert len(found.losses) == len(found.losses[0]) == 3
    assert found == compute_solution_plane(fitteds, *examples(), 2, num_steps=3)


def test_the_grid_is_the_loss_over_that_plane():
    fitteds = {"a": fit(MAP()), "b": fit(MAP(), 1), "c": fit(MAP(), 2)}
    found = compute_solution_plane(fitteds, *examples(), 0, num_steps=3)
    surface = LossSurface(
        fitteds["a"].states[0].model, Categorical(3).loss, prepare_batches(fitteds["a"], *examples())
    )
    plane = plane_through(*(weights(fitted) for fitted in fitteds.values()))
    assert found.losses[0][2] == loss_at(surface, plane.point_at(found.xs[2], found.ys[0]))
    statistics = [batch(7)[0]]
    again = compute_solution_plane(fitteds, *examples(), 0, num_steps=3, norm_batches=statistics)
    ready = [fitteds["a"].transform(statistics[0])]
    assert again.xs == found.xs
    assert (
        again.losses[0][2] == loss_at(surface, plane.point_at(found.xs[2], found.ys[0]), ready) != found.losses[0][2]
    )


@pytest.mark.parametrize(
    ("posterior", "names"), [(MAP(), ["x"]), (Ensemble(size=3), ["x run 1", "x run 2", "x run 3"])]
)
def test_one_run_is_enough(posterior, names):
    found = compute_solution_plane({"x": fit(posterior)}, *examples(), 3, num_steps=2)
    assert list(found.points) == names
    assert all(rest == pytest.approx(0, abs=1e-5) for _, _, rest in found.points.values())


def test_draws_stand_in_for_a_third_solution():
    fitteds = {"a": fit(SWAG(rank=2)), "b": fit(MAP(), 1)}
    found = compute_solution_plane(fitteds, *examples(), 2, num_steps=2)
    assert found.draws["a"][0][2] == pytest.approx(0, abs=1e-6)
    assert found.draws["a"][1][2] > 1e-4


def test_slices_go_through_the_draws():
    fitteds = {"a": fit(SWAG(rank=2)), "b": fit(MAP(), 1), "c": fit(MCDropout(rate=0.5), 2)}
    found = compute_draw_slices(fitteds, *examples(), 3, num_steps=3)
    assert {name: len(some) for name, some in found.items()} == {"a": 3, "b": 3, "c": 3}
    for name, fitted in fitteds.items():
        keys = fitted.sample_ids(3)
        for k, one in enumerate(found[name]):
            with fitted.sampled_network(keys[k % len(keys)]) as model:
                surface = LossSurface(
                    model, Categorical(3).loss, prepare_batches(fitted, *examples()), keep_mode=True
                )
                assert one.losses[1] == pytest.approx(surface.loss(), rel=1e-6)
            assert one.distances == (-1.0, 0.0, 1.0)
    assert len({one.losses[0] for one in found["b"]}) == 3  # one network, three directions


def test_bad_input():
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="networks of equal shapes, and those of b are not those of a"):
        compute_solution_plane({"a": fit(MAP()), "b": fit(MAP(), model=small)}, *examples())
    with pytest.raises(ValueError, match="no posterior was given"):
        compute_solution_plane({}, *examples())
    with pytest.raises(ValueError, match="at least 1 slice"):
        compute_draw_slices({"a": fit(MAP())}, *examples(), 0)
