"""Directions, slices, planes and grids of the loss."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.buffers import reestimate_norm_statistics, swap_buffers
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.diagnostics import (
    LossSurface,
    Plane,
    loss_along,
    loss_at,
    loss_over,
    plane_through,
    random_direction,
)
from flatbayes.diagnostics.landscape import compute_axes, normalize_filters
from support import batch, network


def make_data():
    return [batch(0, dtype=torch.float64), batch(1, size=5, dtype=torch.float64)]


def make_surface(model):
    return LossSurface(model, F.cross_entropy, make_data())


def plain(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).double()


def test_filters_of_a_direction_have_the_norms_of_the_weights():
    weights = [torch.randn(5, 3, 2, 2), torch.randn(4, 7), torch.randn(6), torch.zeros(2, 3)]
    directions = normalize_filters([torch.randn_like(w) for w in weights], weights)
    for direction, tensor in zip(directions[:2], weights[:2], strict=True):
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), tensor.flatten(1).norm(dim=1))
    assert directions[2].norm() == 0
    assert directions[3].norm() == 0
    assert not normalize_filters([torch.zeros(2, 3)], [torch.ones(2, 3)])[0].any()  # and not NaN


def test_directions_are_a_function_of_the_seed():
    model = network(torch.float64)
    before = torch.get_rng_state()
    surface = make_surface(model)
    assert torch.equal(random_direction(surface, 3), random_direction(surface, 3))
    assert not torch.equal(random_direction(surface, 3), random_direction(surface, 4))
    assert not torch.equal(random_direction(surface, 3), random_direction(surface, 3, 1))
    assert torch.equal(torch.get_rng_state(), before)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(2)
    assert torch.equal(random_direction(make_surface(other), 3), 2 * random_direction(surface, 3))


@pytest.mark.parametrize("factor", [8.0, 0.3])
def test_slice_is_invariant_under_rescaling_of_layers(factor):
    model, ts = plain(0), [-1.0, -0.3, 0.0, 0.5, 1.0]
    before = loss_along(make_surface(model), random_direction(make_surface(model)), ts)
    step = torch.ones(make_surface(model).num_params, dtype=torch.float64)  # not normalised, for contrast
    crude = loss_along(make_surface(model), step, ts)
    with torch.no_grad():
        for param, by in zip(model.parameters(), (factor, factor, 1 / factor, 1), strict=True):
            param.mul_(by)
    after = loss_along(make_surface(model), random_direction(make_surface(model)), ts)
    assert after.losses == pytest.approx(before.losses, rel=1e-10)
    seen = loss_along(make_surface(model), step, ts).losses
    assert max(abs(a / b - 1) for a, b in zip(seen, crude.losses, strict=True)) > 0.01


def test_slice_at_distance_zero_is_the_loss():
    surface = make_surface(plain(0))
    direction = random_direction(surface)
    loss_slice = loss_along(surface, direction, [0.0, 0.2])
    assert loss_slice.distances == (0.0, 0.2)
    assert loss_slice.losses[0] == surface.loss()
    offsets = unflatten(0.2 * direction, surface.params)
    assert loss_slice.losses[1] == pytest.approx(surface.loss(offsets), rel=1e-14)


def test_plane_contains_the_three_solutions():
    models = [plain(seed) for seed in range(3)]
    points = [flatten(list(model.parameters())) for model in models]
    plane = plane_through(*points)
    basis = torch.stack([plane.first, plane.second])
    torch.testing.assert_close(basis @ basis.T, torch.eye(2).double(), rtol=0, atol=1e-14)
    places = [plane.project(point) for point in points]
    assert places[0] == pytest.approx((0, 0, 0), abs=1e-12)
    assert places[1] == pytest.approx((float((points[1] - points[0]).norm()), 0, 0), abs=1e-12)
    assert places[2][1] > 0
    for (x, y, rest), point, model in zip(places, points, models, strict=True):
        assert rest == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(plane.point_at(x, y), point, rtol=0, atol=1e-12)
        assert loss_over(make_surface(models[0]), plane, [x], [y]).losses[0][0] == pytest.approx(
            make_surface(model).loss(), rel=1e-10
        )


def test_distance_from_the_plane():
    origin, first, second = torch.tensor([1.0, 0, 0, 0]).double(), torch.eye(4)[1].double(), torch.eye(4)[2].double()
    point = torch.tensor([1.0, 3.0, -2.0, 5.0]).double()
    assert Plane(origin, first, second).project(point) == pytest.approx((3, -2, 5))
    crooked = Plane(origin, 2 * first, first + second)  # as random directions are
    x, y, rest = crooked.project(point)
    assert (x, y, rest) == pytest.approx((2.5, -2, 5))
    torch.testing.assert_close(crooked.point_at(x, y), torch.tensor([1.0, 3.0, -2.0, 0.0]).double())


@pytest.mark.parametrize("third", [0.0, 1.0, 0.3])
def test_collinear_points_are_refused(third):
    one, two = torch.randn(2, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match="Three points on one line do not span a plane"):
        plane_through(one, two, one + third * (two - one))
    with pytest.raises(ValueError, match="Three points on one line"):
        plane_through(one, one, two)


def test_grid_has_a_row_for_each_y():
    surface = make_surface(plain(0))
    plane = Plane(flatten(surface.params), random_direction(surface, 0, 0), random_direction(surface, 0, 1))
    grid = loss_over(surface, plane, [0.0, 0.5, 1.0], [0.0, -1.0])
    assert [len(row) for row in grid.losses] == [3, 3]
    weights = plane.origin + 0.5 * plane.first - plane.second
    assert grid.losses[1][1] == loss_at(surface, weights)
    assert grid.to_dict() == {
        "xs": [0.0, 0.5, 1.0], "ys": [0.0, -1.0], "losses": [list(row) for row in grid.losses],
        "points": {}, "draws": {},
    }  # fmt: skip


def test_norm_statistics_are_of_the_network_or_reestimated():
    model, inputs = network(torch.float64), [x for x, _ in make_data()]
    surface, weights = make_surface(model), flatten(list(model.parameters())) * 1.3
    other = copy.deepcopy(model)
    with torch.no_grad():
        torch._foreach_copy_(list(other.parameters()), unflatten(weights, list(other.parameters())))
    assert loss_at(surface, weights) == make_surface(other).loss()
    with swap_buffers(other, reestimate_norm_statistics(other, inputs)):
        assert loss_at(surface, weights, inputs) == make_surface(other).loss() != loss_at(surface, weights)


def test_axes_contain_all_points_with_a_margin():
    xs, ys = compute_axes([(0.0, 0.0, 1.0), (4.0, 0.0, 1.0), (1.0, 2.0, 9.0)], 5, margin=0.25)
    assert xs == pytest.approx((-1, 0.5, 2, 3.5, 5))
    assert ys == pytest.approx((-1, 0, 1, 2, 3))
    with pytest.raises(ValueError, match="at least 2 points"):
        compute_axes([(0.0, 0.0, 0.0)], 1)
    assert not math.isnan(xs[0])
