"""Two views of fitted posteriors in weight space: slices of the loss at draws, and the plane through solutions.

Both put several posteriors into one picture: on the same examples, in the same random directions, to the same scale.
"""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from flatbayes.core.weights import flatten, trainable_parameters
from flatbayes.diagnostics.landscape import (
    LossGrid,
    LossSlice,
    Plane,
    compute_axes,
    loss_along,
    loss_over,
    plane_through,
    random_direction,
)
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.prediction import FittedPosterior


def compute_draw_slices(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Tensor,
    targets: Tensor,
    num_slices: int = 5,
    *,
    num_steps: int = 21,
    max_distance: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, list[LossSlice]]:
    """The loss through draws of each posterior, each along a filter-normalised random direction of its own.

    The k-th slice of every posterior goes in the k-th direction. Running statistics are those of the draw, all along.

    Args:
        fitted_posteriors: The posteriors by name.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        num_slices: Slices of each posterior; where it has fewer draws, of the same one in several directions.
        num_steps: Places in a slice.
        max_distance: How far it goes on either side; at 1 the noise in each filter is as large as the filter.
        batch_size: Examples a pass sees at a time.
        seed: Decides draws and directions.
        show_progress: Show a progress bar on standard error.
    """
    if num_slices < 1:
        raise ValueError(f"There must be at least 1 slice, got {num_slices}.")
    distances = torch.linspace(-max_distance, max_distance, num_steps).tolist()
    found: dict[str, list[LossSlice]] = {name: [] for name in fitted_posteriors}
    console = Console(stderr=True)
    jobs = [(name, k) for name in fitted_posteriors for k in range(num_slices)]
    for name, k in track(jobs, "slicing the loss", console=console, transient=True, disable=not show_progress):
        fitted = fitted_posteriors[name]
        keys = fitted.sample_ids(num_slices, seed)
        with fitted.sampled_network(keys[k % len(keys)]) as network:
            examples = prepare_batches(fitted, inputs, targets, batch_size)
            surface = LossSurface(network, fitted.likelihood.loss, examples, keep_mode=True)
            found[name].append(loss_along(surface, random_direction(surface, seed, k), distances))
    return found


def compute_solution_plane(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Tensor,
    targets: Tensor,
    num_draws: int = 10,
    *,
    num_steps: int = 21,
    norm_batches: Sequence[Tensor] = (),
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> LossGrid:
    """The loss over the plane through the first three solutions, with all solutions and draws in it.

    Solutions are the trained networks of all runs of all posteriors. Where there are fewer than three, draws take
    their place, and after them random directions from the first. What is not in the plane is shown at its nearest
    point, and its distance is given. Inputs are transformed as for the first posterior.

    Args:
        fitted_posteriors: The posteriors by name, all over networks of the same shapes.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        num_draws: Draws of each posterior to show; none for 0.
        num_steps: Places on each side of the grid.
        norm_batches: Batches of inputs, before the transform, to re-estimate running statistics on at every point;
            where there is BatchNorm, those of one solution are wrong for the others, and without batches those of
            the first are used throughout.
        batch_size: Examples a pass sees at a time.
        seed: Decides which networks are drawn.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: The networks have different shapes, or there are none.
    """
    if not fitted_posteriors:
        raise ValueError("There is nothing to show: no posterior was given.")
    check_same_shapes(fitted_posteriors)
    first = next(iter(fitted_posteriors.values()))
    solutions = {
        name if len(fitted.states) == 1 else f"{name} run {k + 1}": _flatten_weights(state.model, first)
        for name, fitted in fitted_posteriors.items()
        for k, state in enumerate(fitted.states)
    }
    draws = {name: _flatten_draws(fitted, first, num_draws, seed) for name, fitted in fitted_posteriors.items()}
    surface = LossSurface(
        first.states[0].model, first.likelihood.loss, prepare_batches(first, inputs, targets, batch_size)
    )
    plane = _span_plane(surface, [*solutions.values(), *(one for some in draws.values() for one in some)], seed)
    points = {name: plane.project(weights) for name, weights in solutions.items()}
    drawn = {name: tuple(plane.project(weights) for weights in some) for name, some in draws.items()}
    xs, ys = compute_axes([*points.values(), *(place for some in drawn.values() for place in some)], num_steps)
    batches = [first.preprocess(batch) for batch in norm_batches]
    console = Console(stderr=True)
    rows = track(ys, "mapping the loss", console=console, transient=True, disable=not show_progress)
    losses = tuple(loss_over(surface, plane, xs, [y], batches).losses[0] for y in rows)
    return LossGrid(xs, ys, losses, points, drawn)


def check_same_shapes(fitted_posteriors: Mapping[str, FittedPosterior]) -> None:
    """Refuse posteriors whose networks do not share a weight space.

    Raises:
        ValueError: Their trainable weights differ in shape.
    """
    shapes = {
        name: [p.shape for p in trainable_parameters(fitted.states[0].model)]
        for name, fitted in fitted_posteriors.items()
    }
    (reference, expected), *others = shapes.items()
    for name, found in others:
        if found != expected:
            raise ValueError(
                f"A plane through solutions needs networks of equal shapes, and those of {name} are not those of "
                f"{reference}. Compare runs of one architecture, or leave the landscape out."
            )


def _span_plane(surface: LossSurface, points: Sequence[Tensor], seed: int) -> Plane:
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


def _flatten_draws(fitted: FittedPosterior, reference: FittedPosterior, num_draws: int, seed: int) -> list[Tensor]:
    found = []
    for key in fitted.sample_ids(num_draws, seed) if num_draws else []:
        with fitted.sampled_network(key) as network:
            found.append(_flatten_weights(network, reference))
    return found


def _flatten_weights(network: torch.nn.Module, reference: FittedPosterior) -> Tensor:
    return flatten(trainable_parameters(network)).to(reference.device, torch.float64)
