"""Two views of fitted posteriors in weight space: slices of the loss at draws, and the plane through solutions.

Both put several posteriors into one picture: on the same examples, in the same random directions, to the same scale.
"""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from flatbayes.core.weights import flatten, trainable
from flatbayes.diagnostics.landscape import (
    Grid,
    Plane,
    Slice,
    loss_along,
    loss_over,
    plane_through,
    random_direction,
    ranges,
)
from flatbayes.diagnostics.posterior import prepared
from flatbayes.diagnostics.surface import LossSurface
from flatbayes.prediction import FittedPosterior


def slices_of_draws(
    fitteds: Mapping[str, FittedPosterior],
    inputs: Tensor,
    targets: Tensor,
    num_slices: int = 5,
    *,
    steps: int = 21,
    reach: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, list[Slice]]:
    """The loss through draws of each posterior, each along a filter-normalised random direction of its own.

    The k-th slice of every posterior goes in the k-th direction. Running statistics are those of the draw, all along.

    Args:
        fitteds: The posteriors by name.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        num_slices: Slices of each posterior; where it has fewer draws, of the same one in several directions.
        steps: Places in a slice.
        reach: How far it goes on either side; at 1 the noise in each filter is as large as the filter.
        batch_size: Examples a pass sees at a time.
        seed: Decides draws and directions.
        progress: Show a progress bar on standard error.
    """
    if num_slices < 1:
        raise ValueError(f"There must be at least 1 slice, got {num_slices}.")
    distances = torch.linspace(-reach, reach, steps).tolist()
    found: dict[str, list[Slice]] = {name: [] for name in fitteds}
    console = Console(stderr=True)
    jobs = [(name, k) for name in fitteds for k in range(num_slices)]
    for name, k in track(jobs, "slicing the loss", console=console, transient=True, disable=not progress):
        fitted = fitteds[name]
        keys = fitted.draw_keys(num_slices, seed)
        with fitted.drawn(keys[k % len(keys)]) as network:
            examples = prepared(fitted, inputs, targets, batch_size)
            surface = LossSurface(network, fitted.likelihood.loss, examples, as_it_is=True)
            found[name].append(loss_along(surface, random_direction(surface, seed, k), distances))
    return found


def plane_of_solutions(
    fitteds: Mapping[str, FittedPosterior],
    inputs: Tensor,
    targets: Tensor,
    num_draws: int = 10,
    *,
    steps: int = 21,
    statistics: Sequence[Tensor] = (),
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Grid:
    """The loss over the plane through the first three solutions, with all solutions and draws in it.

    Solutions are the trained networks of all runs of all posteriors. Where there are fewer than three, draws take
    their place, and after them random directions from the first. What is not in the plane is shown at its nearest
    point, and its distance is given. Inputs are transformed as for the first posterior.

    Args:
        fitteds: The posteriors by name, all over networks of the same shapes.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        num_draws: Draws of each posterior to show; none for 0.
        steps: Places on each side of the grid.
        statistics: Batches of inputs, before the transform, to re-estimate running statistics on at every point;
            where there is BatchNorm, those of one solution are wrong for the others, and without batches those of
            the first are used throughout.
        batch_size: Examples a pass sees at a time.
        seed: Decides which networks are drawn.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: The networks have different shapes, or there are none.
    """
    if not fitteds:
        raise ValueError("There is nothing to show: no posterior was given.")
    check_same_shapes(fitteds)
    first = next(iter(fitteds.values()))
    solutions = {
        name if len(fitted.states) == 1 else f"{name} run {k + 1}": _weights(state.model, first)
        for name, fitted in fitteds.items()
        for k, state in enumerate(fitted.states)
    }
    draws = {name: _draws(fitted, first, num_draws, seed) for name, fitted in fitteds.items()}
    surface = LossSurface(first.states[0].model, first.likelihood.loss, prepared(first, inputs, targets, batch_size))
    plane = _spanned(surface, [*solutions.values(), *(one for some in draws.values() for one in some)], seed)
    points = {name: plane.coordinates(weights) for name, weights in solutions.items()}
    drawn = {name: tuple(plane.coordinates(weights) for weights in some) for name, some in draws.items()}
    xs, ys = ranges([*points.values(), *(place for some in drawn.values() for place in some)], steps)
    batches = [first.prepared(batch) for batch in statistics]
    console = Console(stderr=True)
    rows = track(ys, "mapping the loss", console=console, transient=True, disable=not progress)
    losses = tuple(loss_over(surface, plane, xs, [y], batches).losses[0] for y in rows)
    return Grid(xs, ys, losses, points, drawn)


def check_same_shapes(fitteds: Mapping[str, FittedPosterior]) -> None:
    """Refuse posteriors whose networks do not share a weight space.

    Raises:
        ValueError: Their trainable weights differ in shape.
    """
    shapes = {name: [p.shape for p in trainable(fitted.states[0].model)] for name, fitted in fitteds.items()}
    (reference, expected), *others = shapes.items()
    for name, found in others:
        if found != expected:
            raise ValueError(
                f"A plane through solutions needs networks of equal shapes, and those of {name} are not those of "
                f"{reference}. Compare runs of one architecture, or leave the landscape out."
            )


def _spanned(surface: LossSurface, points: Sequence[Tensor], seed: int) -> Plane:
    """The plane through the first three points that span one; random directions from the first help out."""
    candidates = [*points, *(points[0] + random_direction(surface, seed, k).to(points[0]) for k in range(2))]
    origin, others = candidates[0], candidates[1:]
    second = next(k for k, point in enumerate(others) if not torch.equal(point, origin))
    for third in others[second + 1 :]:
        try:
            return plane_through(origin, others[second], third)
        except ValueError:
            continue
    raise ValueError("The weights that can be told apart all lie on one line, so they span no plane.")


def _draws(fitted: FittedPosterior, first: FittedPosterior, num_draws: int, seed: int) -> list[Tensor]:
    found = []
    for key in fitted.draw_keys(num_draws, seed) if num_draws else []:
        with fitted.drawn(key) as network:
            found.append(_weights(network, first))
    return found


def _weights(network: torch.nn.Module, first: FittedPosterior) -> Tensor:
    return flatten(trainable(network)).to(first.device, torch.float64)
