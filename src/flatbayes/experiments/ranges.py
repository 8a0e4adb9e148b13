"""Ranges of numeric hyperparameters of a posterior and a flatness, for tuning.

A name is the path of a field: `flatness.rho`, `posterior.temperature`, or `flatness.flatness.rho` of a schedule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from typing import Any, get_args, get_type_hints

from flatbayes.core.names import format_suggestion
from flatbayes.core.spec import short_name
from flatbayes.experiments.run import ExperimentRun
from flatbayes.flatness import Flatness, Plain

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value by name, such as `flatness.rho` or `posterior.temperature`; searched on a log scale."""
Trial = Mapping[str, float | None]
"""Values by name, and under `score` the score; None where training failed."""

RADIUS_RANGE_FACTORS = (0.1, 20.0)
"""Default range of a radius, in units of the radius of the flatness."""
EDGE_FRACTION = 0.1
"""Fraction of a range, on a log scale, at each end that counts as its edge."""
EXTENSION_FACTOR, MAX_EXTENSIONS, MIN_TRIALS_BETWEEN_EXTENSIONS = 4.0, 3, 4
"""By how much a range grows at an edge, how often, and after how many trials."""


def default_ranges(run: ExperimentRun) -> Ranges:
    """The radius of the flatness of the run, from a tenth to twenty times its value; of `auto`, the usual value.

    Raises:
        ValueError: The flatness has no radius.

    Examples:
        >>> run = ExperimentRun(source, MLP, SWAG(), SAM(rho=0.2), config, seed=0)
        >>> default_ranges(run)["flatness.rho"][1]
        4.0
    """
    name, radius = find_radius_name(run.flatness), run.flatness.radius
    if name is None or not radius:
        raise ValueError(
            f"{short_name(run.flatness)} has no radius to tune: choose another flatness, or give ranges."
        )
    value = run.flatness.reference_radius if isinstance(radius, str) else radius
    return {name: (RADIUS_RANGE_FACTORS[0] * value, RADIUS_RANGE_FACTORS[1] * value)}


def find_radius_name(flatness: Flatness) -> str | None:
    """Name of the radius of a flatness, or of the one within a schedule; None without a radius."""
    inner, path = flatness, ["flatness"]
    while isinstance(getattr(inner, "flatness", None), Flatness):
        inner, path = inner.flatness, [*path, "flatness"]  # type: ignore[attr-defined]
    return None if inner.radius_field is None else ".".join([*path, inner.radius_field])


def extend_ranges(ranges: Ranges, trials: Sequence[Trial], names: Sequence[str], *, higher_is_better: bool) -> Ranges:
    """Ranges that have grown at an edge where the best value was.

    The trials are gone through in their order, so that a continued study has the same ranges.
    """
    extended, num_extensions, next_check = dict(ranges), 0, MIN_TRIALS_BETWEEN_EXTENSIONS
    for count in range(1, len(trials) + 1):
        if count < next_check or num_extensions == MAX_EXTENSIONS:
            continue
        edges = find_edges(extended, trials[:count], higher_is_better=higher_is_better)
        for name in set(names) & edges.keys():
            low, high = extended[name]
            extended[name] = (
                (low / EXTENSION_FACTOR, high) if edges[name] == "low" else (low, high * EXTENSION_FACTOR)
            )
            num_extensions, next_check = num_extensions + 1, count + MIN_TRIALS_BETWEEN_EXTENSIONS
    return extended


def find_edges(ranges: Ranges, trials: Sequence[Trial], *, higher_is_better: bool) -> dict[str, str]:
    """The names whose best value is at the edge of its range, and which: `low` or `high`."""
    scored = [(trial["score"], trial) for trial in trials if trial["score"] is not None]
    if not scored:
        return {}
    best = (max if higher_is_better else min)(scored, key=lambda pair: pair[0])[1]
    edges = {}
    for name, (low, high) in ranges.items():
        value = best.get(name)
        if value and low < high:
            place = math.log(value / low) / math.log(high / low)
            if not EDGE_FRACTION < place < 1 - EDGE_FRACTION:
                edges[name] = "low" if place < 0.5 else "high"
    return edges


def check_ranges(run: ExperimentRun, ranges: Ranges) -> None:
    """Check that the names are those of numeric hyperparameters, and the ranges positive."""
    if not ranges:
        raise ValueError("There is nothing to tune: give at least one range, such as flatness.rho.")
    for name, (low, high) in ranges.items():
        owner, *path = name.split(".")
        if owner not in ("posterior", "flatness") or not path:
            raise ValueError(
                f"{name!r} is neither of the posterior nor of the flatness: write the name of its axis before it, "
                "such as flatness.rho."
            )
        component, attribute = reduce(getattr, path[:-1], getattr(run, owner)), path[-1]
        if not is_dataclass(component):
            raise ValueError(
                f"{name!r} cannot be tuned: {type(component).__name__} is no dataclass, whose fields are the "
                "hyperparameters. Declare it with @dataclass(frozen=True)."
            )
        values = {f.name: getattr(component, f.name) for f in fields(component)}
        numeric = [
            field
            for field, value in values.items()
            if value is None or value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool))
        ]
        if attribute not in numeric:
            suggestion = format_suggestion(attribute, numeric, f"{owner}.")
            raise ValueError(
                f"{type(component).__name__} has no number {attribute!r} to tune. {suggestion}It has "
                f"{', '.join(numeric)}."
            )
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"The range of {name} must satisfy 0 < low <= high, got {low} and {high}.")


def get_hyperparameter(run: ExperimentRun, name: str) -> Any:
    """The value of a hyperparameter, by a name such as `flatness.rho`."""
    return reduce(getattr, name.split("."), run)


def is_whole_number(run: ExperimentRun, name: str) -> bool:
    """Whether a hyperparameter is a whole number, by the annotation of its field: a radius may be written as 1."""
    owner, _, field = name.rpartition(".")
    component = get_hyperparameter(run, owner)
    try:
        kind = get_type_hints(type(component))[field]
    except NameError:  # another field names a type that is imported for type checkers only
        kind = type(getattr(component, field))
    kinds = get_args(kind) or (kind,)
    return int in kinds and float not in kinds


def replace_hyperparameters(run: ExperimentRun, values: Mapping[str, float]) -> ExperimentRun:
    """The run with other hyperparameters, by names such as `flatness.rho`; a radius of 0 is plain training."""
    for name, value in values.items():
        if value == 0 and name == find_radius_name(run.flatness):
            run = replace(run, flatness=Plain())
            continue
        *path, attribute = name.split(".")
        changed: Any = replace(get_hyperparameter(run, ".".join(path)), **{attribute: value})
        while path:
            *path, attribute = path
            changed = replace(get_hyperparameter(run, ".".join(path)) if path else run, **{attribute: changed})
        run = changed
    return run


def is_training_fixed(run: ExperimentRun, ranges: Ranges) -> bool:
    """Whether the run has the same training with the lowest and with the highest values."""
    try:
        ends = [
            replace_hyperparameters(run, dict(zip(ranges, values, strict=True)))
            for values in zip(*ranges.values(), strict=True)
        ]
    except ValueError:
        return False
    return len({end.training_key() for end in ends}) == 1
