"""Ranges of numeric hyperparameters of a posterior and a flatness, for tuning."""

from collections.abc import Mapping
from dataclasses import fields, replace

from flatbayes.core.names import format_suggestion
from flatbayes.core.spec import short_name
from flatbayes.experiments.run import ExperimentRun

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value by name, such as `flatness.rho` or `posterior.temperature`; searched on a log scale."""

RHO_RANGE_FACTORS = (0.1, 20.0)
"""Default range of a radius, in units of the radius of the flatness."""


def default_ranges(run: ExperimentRun) -> Ranges:
    """The radius of the flatness of the run, from a tenth to twenty times its value.

    Raises:
        ValueError: The flatness has no radius.

    Examples:
        >>> run = ExperimentRun(source, MLP, SWAG(), SAM(rho=0.2), config, seed=0)
        >>> default_ranges(run)["flatness.rho"][1]
        4.0
    """
    rho = getattr(run.flatness, "rho", None)
    if not rho:
        raise ValueError(
            f"{short_name(run.flatness)} has no radius to tune: choose another flatness, or give ranges."
        )
    return {"flatness.rho": (RHO_RANGE_FACTORS[0] * rho, RHO_RANGE_FACTORS[1] * rho)}


def check_ranges(run: ExperimentRun, ranges: Ranges) -> None:
    """Check that the names are those of numeric hyperparameters, and the ranges positive.

    Raises:
        ValueError: A name is not that of a hyperparameter, or a range is empty.
    """
    if not ranges:
        raise ValueError("There is nothing to tune: give at least one range, such as flatness.rho.")
    for name, (low, high) in ranges.items():
        owner, _, attribute = name.partition(".")
        if owner not in ("posterior", "flatness"):
            raise ValueError(
                f"{name!r} is neither of the posterior nor of the flatness: write the name of its axis before it, "
                "such as flatness.rho."
            )
        component = getattr(run, owner)
        values = {f.name: getattr(component, f.name) for f in fields(component)}
        numeric = [
            field
            for field, value in values.items()
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        ]
        if attribute not in numeric:
            suggestion = format_suggestion(attribute, numeric, f"{owner}.")
            raise ValueError(
                f"{type(component).__name__} has no number {attribute!r} to tune. {suggestion}It has "
                f"{', '.join(numeric)}."
            )
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"The range of {name} must satisfy 0 < low <= high, got {low} and {high}.")


def replace_hyperparameters(run: ExperimentRun, values: Mapping[str, float]) -> ExperimentRun:
    """The run with other hyperparameters, by names such as `flatness.rho`."""
    for name, value in values.items():
        owner, _, attribute = name.partition(".")
        run = replace(run, **{owner: replace(getattr(run, owner), **{attribute: value})})
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
