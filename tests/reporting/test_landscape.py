"""Figures of the loss: levels, marks and names, and that drawing leaves matplotlib as it was."""

import math
from xml.etree import ElementTree

import matplotlib
import pytest

from flatbayes.diagnostics import LossGrid, LossSlice
from flatbayes.plotting.landscape import line_styles, log_levels
from flatbayes.reporting.landscape import draw_plane, draw_slices
from flatbayes.reporting.svg import FILE_COLOURS


def bowl(lift=0.1, points=None, draws=None):
    xs, ys = tuple(k / 4 for k in range(-4, 9)), tuple(k / 4 for k in range(-4, 5))
    losses = tuple(tuple(lift + x * x + 3 * y * y for x in xs) for y in ys)
    return LossGrid(xs, ys, losses, points or {}, draws or {})


POINTS = {"plain": (0.0, 0.0, 0.0), "flat": (1.0, 0.0, 0.0), "far": (1.0, 0.5, 2.5)}
DRAWS = {"plain": ((0.1, 0.1, 0.3), (-0.1, 0.2, 0.3)), "flat": ((0.9, 0.1, 0.2),)}


def words(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_levels_are_a_geometric_progression_over_what_is_finite():
    levels = log_levels([[0.5, 8.0, math.inf], [2.0, math.nan, 1.0]], 5)
    assert levels == pytest.approx([0.5, 1, 2, 4, 8])
    assert levels[-1] == 8.0


def test_levels_of_losses_that_are_not_positive():
    levels = log_levels([[-1.0, 9.0]], 4)
    assert levels == pytest.approx([-1, -1 + 0.01, -1 + 0.1, 0, 9])
    assert levels == sorted(levels)


def test_a_level_plane_has_levels_too():
    low, high = log_levels([[3.0, 3.0]])
    assert low == 3.0 < high
    assert "<svg" in draw_plane(LossGrid((0.0, 1.0), (0.0, 1.0), ((3.0, 3.0), (3.0, 3.0)), {}, {}), {})


def test_without_a_finite_loss_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="No loss on the grid is finite"):
        log_levels([[math.nan, math.inf]])


def test_solutions_are_named_and_their_distance_is_told():
    svg = draw_plane(bowl(points=POINTS, draws=DRAWS), {"plain": False, "flat": True})
    found = words(svg)
    assert {"plain", "flat", "far (2.5 away)"} <= set(found)
    assert {"distance in weight space", "draws, plain", "draws, flat", "solution, plain", "solution, flat"} <= set(
        found
    )
    assert any("Loss in nats over the plane" in word for word in found)
    assert any(word.replace(".", "").isdigit() for word in found)  # levels
    assert svg.count(FILE_COLOURS["#0072b3"]) >= 2  # a flat solution and its draw
    assert svg.count(FILE_COLOURS["#d55e01"]) >= 3
    assert "Loss over the plane through plain, flat, far" in svg


def test_both_axes_have_the_same_scale():
    _, _, width, height = map(float, ElementTree.fromstring(draw_plane(bowl(), {})).attrib["viewBox"].split())
    inner_width, inner_height = width - 1.5 * 52, height - 1.2 * 52 - 24 - 26
    assert inner_height / inner_width == pytest.approx(2 / 3, rel=1e-3)


def test_holes_in_the_loss_are_left_out():
    grid = bowl()
    broken = LossGrid(grid.xs, grid.ys, ((math.inf,) * len(grid.xs), *grid.losses[1:]), {}, {})
    assert "<svg" in draw_plane(broken, {})


def test_slices_have_a_name_each_and_a_bold_mean():
    some = [LossSlice((-1.0, 0.0, 1.0), (4.0, 1.0, 3.0)), LossSlice((-1.0, 0.0, 1.0), (6.0, 1.0, math.inf))]
    svg = draw_slices({"SWAG x Plain": some, "SWAG x SAM": some}, {"SWAG x SAM": True})
    found = words(svg)
    assert {"SWAG x Plain", "SWAG x SAM", "loss in nats"} <= set(found)
    assert not any("$" in word for word in found)
    assert svg.count("stroke-width: 2.2") >= 4  # two means, two entries of the key


def test_losses_that_are_not_positive_are_drawn_on_a_plain_scale():
    some = {"x": [LossSlice((0.0, 1.0), (-1.0, 2.0))]}
    assert "−0.6" in " ".join(words(draw_slices(some, {})))


def test_dashes_tell_runs_of_one_colour_apart():
    styles = line_styles({"a": 0, "b": 0, "c run 2": 0}, {"a": True, "b": True, "c": False})
    assert styles["a"]["color"] == styles["b"]["color"] != styles["c run 2"]["color"]
    assert styles["a"]["linestyle"] != styles["b"]["linestyle"]


def test_figures_are_reproducible_and_leave_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    first = draw_plane(bowl(points=POINTS, draws=DRAWS), {"flat": True})
    assert first == draw_plane(bowl(points=POINTS, draws=DRAWS), {"flat": True})
    assert dict(matplotlib.rcParams) == before
