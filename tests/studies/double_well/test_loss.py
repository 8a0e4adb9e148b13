import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatbayes.theory import gibbs_posterior, grid_points, worst_loss
from studies.double_well.loss import MultiWellLoss, make_sharp_and_flat_wells


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_loss_by_hand():
    wells = MultiWellLoss(centres=((0.0,), (3.0,)), radii=(1.0, 2.0), depths=(1.0, 0.5))
    points = tensor(0.0, 0.5, 1.0, 3.0, 4.0, 5.0, 9.0).unsqueeze(1)
    expected = [0.0, 1 - 0.75**2, 1.0, 0.5, 1 - 0.5 * 0.75**2, 1.0, 1.0]
    assert wells.loss(points).tolist() == pytest.approx(expected)
    assert wells.is_inside_well(points, 0).tolist() == [True, True, False, False, False, False, False]
    assert wells.is_inside_well(points, 1).tolist() == [False, False, False, True, True, False, False]
    assert wells.plateau_width == 0
    assert MultiWellLoss(((0.0,),), (1.0,), (1.0,)).plateau_width == math.inf


@pytest.mark.parametrize("num_params", [1, 2])
def test_gradient_is_that_of_the_loss(num_params):
    wells = make_sharp_and_flat_wells(num_params)
    points = (1.5 * torch.randn(200, num_params, dtype=torch.float64)).requires_grad_()
    (expected,) = torch.autograd.grad(wells.loss(points).sum(), points)
    torch.testing.assert_close(wells.gradient(points.detach()), expected)
    assert (expected == 0).any()
    assert (expected != 0).any()


def test_curvature_at_the_bottom():
    wells, h = make_sharp_and_flat_wells(1), 1e-5
    for centre, radius, depth in zip(wells.centres, wells.radii, wells.depths, strict=True):
        slope = wells.gradient(tensor(centre[0] + h))
        assert float(slope) / h == pytest.approx(4 * depth / radius**2, rel=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.3, 0.9, 5.0])
def test_worst_loss_is_that_of_the_grid_for_balls_of_any_size(rho):
    """On a grid it is short by at most a spacing times the steepest slope; on a line, ρ is a multiple of it."""
    wells = make_sharp_and_flat_wells(1)
    points = grid_points(1, 4.0, 8000)
    torch.testing.assert_close(
        wells.worst_loss(points, rho), worst_loss(wells.loss(points), rho / 1e-3), rtol=0, atol=1e-12
    )
    plane = make_sharp_and_flat_wells(2)
    points = grid_points(2, 4.0, 200)
    short = plane.worst_loss(points, rho) - worst_loss(plane.loss(points), rho / 0.04)
    steepest = float(torch.linalg.vector_norm(plane.gradient(points), dim=-1).max())
    assert short.min() > -1e-12
    assert short.max() < 0.06 * steepest


@given(st.integers(0, 10**6), st.floats(0, 0.3), st.sampled_from([1, 2]))
def test_one_step_of_ascent_ends_at_the_worst_point_up_to_the_width_of_the_plateau(seed, rho, num_params):
    wells = make_sharp_and_flat_wells(num_params)
    assert wells.plateau_width == pytest.approx(0.3)
    points = 2 * torch.randn(50, num_params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradient = wells.gradient(points)
    norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    there = points + torch.where(norm > 0, rho * gradient / norm, 0.0)
    torch.testing.assert_close(wells.loss(there), torch.where(norm[:, 0] > 0, wells.worst_loss(points, rho), 1.0))


def test_a_wider_ball_lets_one_step_jump_into_the_other_well():
    wells, at = make_sharp_and_flat_wells(1), tensor(-0.7).unsqueeze(0)
    assert float(wells.gradient(at)) > 0
    assert float(wells.loss(at + 0.6)) < 0.99 < float(wells.worst_loss(at, 0.6))


@pytest.mark.parametrize("num_params", [1, 2])
def test_flatness_moves_the_mass_from_the_sharp_to_the_flat_well(num_params):
    wells, cells = make_sharp_and_flat_wells(num_params), 2000 if num_params == 1 else 250
    points = grid_points(num_params, 5.0, cells)
    log_prior, cell = -points.square().sum(-1) / 2, (10 / cells) ** num_params
    plain, flat = (gibbs_posterior(wells.worst_loss(points, rho), log_prior, 7.0, cell) for rho in (0.0, 0.3))
    assert (
        plain.region_probability(wells.is_inside_well(points, 0))
        > 0.6
        > 0.4
        > plain.region_probability(wells.is_inside_well(points, 1))
    )
    assert (
        flat.region_probability(wells.is_inside_well(points, 0))
        < 0.15
        < 0.7
        < flat.region_probability(wells.is_inside_well(points, 1))
    )


def test_grid_points_are_the_centres_of_cells():
    assert grid_points(1, 1.0, 4).tolist() == [[-0.75], [-0.25], [0.25], [0.75]]
    plane = grid_points(2, 1.0, 2)
    assert plane.shape == (2, 2, 2)
    assert plane[1, 0].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiWellLoss(((0.0,),), (1.0, 2.0), (1.0,)), "a centre, a radius and a depth each, got 1, 2 and 1"),
        (lambda: MultiWellLoss((), (), ()), "got 0, 0 and 0"),
        (lambda: MultiWellLoss(((0.0,), (5.0, 0.0)), (1.0, 1.0), (1.0, 1.0)), "same number of coordinates"),
        (lambda: MultiWellLoss(((0.0,),), (0.0,), (1.0,)), "radius must be positive and finite, got 0.0"),
        (lambda: MultiWellLoss(((0.0,),), (1.0,), (-1.0,)), "depth must be positive and finite, got -1.0"),
        (lambda: MultiWellLoss(((0.0,),), (1.0,), (1.5,)), "depths must be at most 1, .* got 1.5"),
        (
            lambda: MultiWellLoss(((0.0,), (1.0,)), (1.0, 1.0), (1.0, 1.0)),
            "must not overlap, got two that do by 1; move",
        ),
        (lambda: make_sharp_and_flat_wells(3), "num_params must be 1 or 2, got 3"),
        (lambda: make_sharp_and_flat_wells(1).worst_loss(torch.zeros(1), -0.1), "rho is the radius of a ball"),
        (lambda: grid_points(3, 1.0, 4), "1 or 2 dimensions and at least 1 cell on a side, got 3 and 4"),
        (lambda: grid_points(1, 0.0, 4), "half_width must be positive"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
