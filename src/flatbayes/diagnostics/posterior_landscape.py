"""Loss landscape of several posteriors: slices through draws, and the plane through solutions.

All posteriors share the examples, the random directions and the scale, so that they can be drawn in one figure.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from flatbayes.core.console import PlainConsole
from flatbayes.core.devices import to_double
from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.diagnostics.landscape import (
    LossGrid,
    LossSlice,
    Plane,
    compute_axes,
    loss_along,
    loss_over,
    random_direction,
    span_plane,
)
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.prediction import FittedPosterior


def compute_draw_slices(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Any,
    targets: Any = None,
    num_slices: int = 5,
    *,
    num_steps: int = 21,
    max_distance: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, list[LossSlice]]:
    """Loss along filter-normalised random directions through draws of each posterior.

    The k-th slice of every posterior uses the k-th direction. Running statistics are those of the draw.

    Args:
        fitted_posteriors: The posteriors by name.
        inputs: Examples in the form of the training data. Without `targets`, a split or a pair `(inputs, targets)`.
        targets: Targets of the examples, in a form that `evaluate` takes.
        num_slices: Slices of each posterior; with fewer draws, several directions through the same draw.
        num_steps: Points of a slice.
        max_distance: Largest distance on each side; at 1 each filter is perturbed by noise of its own norm.
        batch_size: Examples per forward pass.
        seed: Seed of draws and directions.
        show_progress: Show a progress bar on standard error.

    Returns:
        The slices of each posterior by its name.

    Examples:
        >>> slices = compute_draw_slices(
        ...     {"SWAG": fitted}, inputs[:50], labels[:50], num_slices=2, num_steps=5
        ... )
        >>> len(slices["SWAG"]), slices["SWAG"][0].distances
        (2, (-1.0, -0.5, 0.0, 0.5, 1.0))
    """
    if num_slices < 1:
        raise ValueError(f"num_slices must be at least 1, got {num_slices}.")
    distances = torch.linspace(-max_distance, max_distance, num_steps).tolist()
    slices: dict[str, list[LossSlice]] = {name: [] for name in fitted_posteriors}
    console = PlainConsole(stderr=True)
    examples: list[tuple[ModelInputs, Tensor]] = []
    pairs = [(name, k) for name in fitted_posteriors for k in range(num_slices)]
    for name, k in track(pairs, "slicing the loss", console=console, transient=True, disable=not show_progress):
        fitted = fitted_posteriors[name]
        sample_ids = fitted.sample_ids(num_slices, seed)
        with fitted.sampled_network(sample_ids[k % len(sample_ids)]) as network:
            examples = prepare_batches(fitted, inputs, targets, batch_size) if k == 0 else examples
            surface = LossSurface(network, fitted.likelihood.loss, examples, keep_mode=True)
            slices[name].append(loss_along(surface, random_direction(surface, seed, k), distances))
    return slices


def compute_solution_plane(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Any,
    targets: Any = None,
    num_draws: int = 10,
    *,
    num_steps: int = 21,
    norm_batches: Sequence[Tensor] = (),
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> LossGrid:
    """Loss over the plane through the first three solutions, with all solutions and draws projected onto it.

    Solutions are the trained networks of all members of all posteriors. If there are fewer than three, draws are
    used, and then random directions from the first solution. Inputs are transformed as for the first posterior.

    Args:
        fitted_posteriors: The posteriors by name, all with networks of the same shapes.
        inputs: Examples in the form of the training data. Without `targets`, a split or a pair `(inputs, targets)`.
        targets: Targets of the examples, in a form that `evaluate` takes.
        num_draws: Draws of each posterior to project; 0 for none.
        num_steps: Points on each side of the grid.
        norm_batches: Batches of inputs, before the transform, on which BatchNorm statistics are re-estimated at every
            point; if empty, the statistics of the first solution are used, which are wrong for the others.
        batch_size: Examples per forward pass.
        seed: Seed of the draws.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: The networks have different shapes, or there are none.

    Examples:
        >>> plain = fit(MLP, data, SWAG(rank=2), Plain(), config)
        >>> solutions = {"flat": fitted, "plain": plain}
        >>> grid = compute_solution_plane(
        ...     solutions, inputs[:50], labels[:50], num_draws=2, num_steps=3
        ... )
        >>> sorted(grid.points), len(grid.draws["flat"])
        (['flat', 'plain'], 2)
    """
    if not fitted_posteriors:
        raise ValueError("compute_solution_plane needs at least one posterior, got none.")
    check_same_shapes(fitted_posteriors)
    first = next(iter(fitted_posteriors.values()))
    solutions = {
        name if len(fitted.states) == 1 else f"{name} run {k + 1}": _flatten_weights(state.model, first)
        for name, fitted in fitted_posteriors.items()
        for k, state in enumerate(fitted.states)
    }
    draws = {name: _flatten_draws(fitted, first, num_draws, seed) for name, fitted in fitted_posteriors.items()}
    surface = LossSurface(
        first.states[0].model,
        first.likelihood.loss,
        prepare_batches(first, inputs, targets, batch_size),
        updated_buffers=first.states[0].updated_buffers,
    )
    plane = _span_plane(surface, [*solutions.values(), *chain.from_iterable(draws.values())], seed)
    points = {name: plane.project(weights) for name, weights in solutions.items()}
    draw_points = {name: tuple(map(plane.project, vectors)) for name, vectors in draws.items()}
    xs, ys = compute_axes([*points.values(), *chain.from_iterable(draw_points.values())], num_steps)
    batches = [first.preprocess(batch) for batch in norm_batches]
    console = PlainConsole(stderr=True)
    rows = track(ys, "mapping the loss", console=console, transient=True, disable=not show_progress)
    losses = tuple(loss_over(surface, plane, xs, [y], batches).losses[0] for y in rows)
    return LossGrid(xs, ys, losses, points, draw_points)


def check_same_shapes(fitted_posteriors: Mapping[str, FittedPosterior]) -> None:
    """Check that the networks of all posteriors have trainable weights of the same shapes."""
    shapes = {
        name: [p.shape for p in trainable_parameters(fitted.states[0].model)]
        for name, fitted in fitted_posteriors.items()
    }
    (reference, expected), *others = shapes.items()
    for name, other in others:
        if other != expected:
            raise ValueError(
                f"A plane through solutions needs networks of equal shapes, and those of {name} differ from those of "
                f"{reference}. Compare runs of one architecture, or leave the landscape out."
            )


def _span_plane(surface: LossSurface, points: Sequence[Tensor], seed: int) -> Plane:
    """The plane through the first three points that span one, random directions from the first point included."""
    candidates = [*points, *(points[0] + random_direction(surface, seed, k).to(points[0]) for k in range(2))]
    origin, others = candidates[0], candidates[1:]
    second = next(k for k, point in enumerate(others) if not torch.equal(point, origin))
    planes = (span_plane(origin, others[second], third) for third in others[second + 1 :])
    plane = next((plane for plane in planes if plane is not None), None)
    if plane is None:
        raise ValueError("All solutions, draws and random directions lie on one line, so they span no plane.")
    return plane


def _flatten_draws(fitted: FittedPosterior, reference: FittedPosterior, num_draws: int, seed: int) -> list[Tensor]:
    vectors = []
    for sample_id in fitted.sample_ids(num_draws, seed) if num_draws else []:
        with fitted.sampled_network(sample_id) as network:
            vectors.append(_flatten_weights(network, reference))
    return vectors


def _flatten_weights(network: torch.nn.Module, reference: FittedPosterior) -> Tensor:
    return to_double(flatten(trainable_parameters(network)).to(reference.device))
