"""Choice of a radius on validation data: which radii are tried, in which part of training, and which is taken."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from flatbayes.core.files import JsonValue
from flatbayes.flatness import Delayed, Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config import TrainingConfig
from flatbayes.training.identity import describe_name

MAX_COST = 1.25
"""Largest number of gradients of a training with its pilot, in those of the training with a fixed radius."""
RADIUS_FACTORS = (2.0, 20.0)
"""Radii at the end of training, beside 0, in units of the usual radius: from docs/results/radius-late.json."""
WHOLE_RADIUS_FACTORS = (1.0, 2.0)
"""Radii in whole trainings, beside 0, likewise: from the choice half of studies/defaults."""
MIN_GAIN = 0.02
"""Nats by which an unusual radius or a stronger prior must have a lower validation NLL: less may be chance in a few
hundred examples."""
MAX_FRACTION = 0.5
"""Largest fraction of training in which radii differ, for a flatness that costs many gradients."""


@dataclass(frozen=True)
class RadiusChoice:
    """What a pilot has chosen, and why.

    Attributes:
        name: Name of the radius in the flatness.
        value: The radius.
        start: Fraction of training from which on it is used.
        scores: Validation NLL by radius, of the first network; None where training diverged.
        reason: Why the radius was chosen, as a sentence.
        epochs: Number of epochs, before early stopping shortens them; None for that of the configuration.
        errors: Standard error of the difference from the NLL of radius 0, by radius above 0.
    """

    name: str
    value: float
    start: float
    scores: tuple[tuple[float, float | None], ...]
    reason: str
    epochs: int | None = None
    errors: tuple[tuple[float, float], ...] = ()

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data, for the metadata of an artefact."""
        pairs: dict[str, JsonValue] = {
            name: [list(pair) for pair in vars(self)[name]] for name in ("scores", "errors")
        }
        return {**vars(self), **pairs}


def compute_pilot_fraction(flatness: Flatness) -> float:
    """Fraction of training, at its end, in which the radii of a pilot differ.

    A plain training and K repetitions of its last fraction t, one for each of `RADIUS_FACTORS`, take 1 + t K g
    gradients a step, with g those of the flatness. A training with a fixed radius takes G, which is less than g if
    the flatness is not used in the whole of training. The fraction is the largest t with 1 + t K g <= `MAX_COST`
    G, and at most `MAX_FRACTION`.

    Examples:
        >>> from flatbayes.flatness import MSAM, SAM
        >>> compute_pilot_fraction(SAM()), compute_pilot_fraction(MSAM())
        (0.375, 0.125)
    """
    budget = MAX_COST * flatness.gradients_per_step - 1
    return min(
        MAX_FRACTION, max(0.0, budget) / (len(RADIUS_FACTORS) * get_active_flatness(flatness).gradients_per_step)
    )


def get_active_flatness(flatness: Flatness) -> Flatness:
    """The flatness of the last part of training."""
    return get_active_flatness(flatness.flatness) if isinstance(flatness, Delayed) else flatness


def make_usual_flatness(flatness: Flatness) -> Flatness:
    """The flatness with its usual radius, for checks and trials, if it is to be chosen; else the flatness itself."""
    return flatness.with_radius(flatness.reference_radius) if flatness.radius == "auto" else flatness


def find_obstructive_option(config: TrainingConfig) -> str | None:
    """The option with which a pilot cannot go back to an earlier step; None if it can."""
    if config.distribution.strategy == "fsdp":
        return "distribution.strategy fsdp"
    return "precision.cuda_graph" if config.precision.cuda_graph else None


def check_pilot(flatness: Flatness, posterior: Posterior, config: TrainingConfig) -> None:
    """Refuse a choice of the radius where no pilot is possible.

    Raises:
        ValueError: The configuration cannot go back to an earlier step, or the posterior needs the flatness earlier.
    """
    advice = f"Give the radius as a number, such as {flatness.reference_radius:g}."
    option = find_obstructive_option(config)
    if option is not None:
        raise ValueError(
            f"The radius of {describe_name(flatness)} is chosen by a pilot, which goes back to an earlier step, and "
            f"that is not possible with {option}. {advice}"
        )
    start = 1 - compute_pilot_fraction(flatness)
    try:
        check_compatibility(posterior, Delayed(make_usual_flatness(flatness), start), config)
    except ValueError as error:
        raise ValueError(
            f"The pilot that chooses the radius of {describe_name(flatness)} trains plain before {start:g} of "
            f"training. {error} {advice}"
        ) from error


def make_candidate(flatness: Flatness, radius: float, start: float) -> Flatness:
    """Plain training for radius 0, otherwise the flatness with this radius from a fraction of training on."""
    if radius == 0:
        return Plain()
    return Delayed(flatness.with_radius(radius), start) if start > 0 else flatness.with_radius(radius)


def select_radius(
    scores: Mapping[float, float | None], usual: float = 0.0, errors: Mapping[float, float] = MappingProxyType({})
) -> float:
    """The radius with the lowest validation NLL: 0, or one whose NLL is lower by more than chance.

    That is more than one standard error, and for another radius than the usual one also more than `MIN_GAIN`. An NLL
    is None where training diverged; errors are those of the difference from the NLL of radius 0.

    Examples:
        >>> select_radius({0.0: 0.31, 0.1: 0.27, 1.0: 0.28}), select_radius({0.0: 0.31, 0.1: 0.30})
        (0.1, 0.0)
        >>> select_radius({0.0: 0.31, 0.05: 0.30, 0.1: 0.29}, usual=0.05)
        0.05
        >>> select_radius({0.0: 0.31, 0.05: 0.30}, usual=0.05, errors={0.05: 0.02})
        0.0
    """
    costs = {
        radius: inf if score is None else score + MIN_GAIN * (radius not in (0, usual))
        for radius, score in scores.items()
    }
    accepted = [radius for radius in sorted(costs) if radius == 0 or costs[radius] + errors.get(radius, 0) < costs[0]]
    return min(accepted, key=costs.__getitem__)


def find_radius_name(flatness: Flatness) -> str:
    """Name of the radius, also of the flatness within a schedule."""
    inner = getattr(flatness, "flatness", None)
    return find_radius_name(inner) if isinstance(inner, Flatness) else str(flatness.radius_field)


def format_scores(
    scores: Iterable[tuple[float, float | None]], errors: Mapping[float, float] = MappingProxyType({})
) -> str:
    """Validation NLL by value, with standard errors, as text; None where training diverged.

    Examples:
        >>> format_scores([(0.0, 0.31), (0.05, 0.3), (0.1, None)], {0.05: 0.02})
        '0: 0.3100, 0.05: 0.3000 ± 0.0200, 0.1: diverged'
    """
    texts = []
    for value, nll in scores:
        text = "diverged" if nll is None else format(nll, ".4f")
        error = f" ± {errors[value]:.4f}" if nll is not None and errors.get(value) else ""
        texts.append(f"{value:g}: {text}{error}")
    return ", ".join(texts)


def describe_radius(
    name: str,
    best: float,
    start: float,
    scores: Mapping[float, float | None],
    usual: float = 0.0,
    errors: Mapping[float, float] = MappingProxyType({}),
) -> str:
    """Why a radius was chosen, as a sentence.

    It is used from the fraction `start` of training on; the other arguments are those of `select_radius`.

    Examples:
        >>> describe_radius("rho", 0.0, 0.0, {0.0: 0.31})
        'rho is 0: the budget did not allow for a whole training with another (0: 0.3100).'
        >>> describe_radius("r", 0.0, 0.0, {0.0: 0.31, 0.05: 0.3}, 0.05, {0.05: 0.02})
        'r is 0: no other lowers the validation NLL by more than its standard error (0: 0.3100, 0.05: ...).'
    """
    joined = format_scores(scores.items(), errors)
    lowest = min((nll for nll in scores.values() if nll is not None), default=None)
    if len(scores) == 1:
        return f"{name} is {best:g}: the budget did not allow for a whole training with another ({joined})."
    if best == 0 and scores[0] == lowest:
        return f"Flatness does not pay here: {name} 0 has the lowest validation NLL ({joined})."
    if best == 0 and usual in scores:
        return f"{name} is 0: no other lowers the validation NLL by more than its standard error ({joined})."
    if best == 0:
        return f"{name} is 0: no other lowers the validation NLL by {MIN_GAIN:g} and its standard error ({joined})."
    place = f", from {start:.0%} of training on" if start else ""
    is_lowest = scores[best] == lowest
    reason = "it has the lowest validation NLL" if is_lowest else f"no other has a validation NLL {MIN_GAIN:g} lower"
    return f"{name} is {best:g}{place}: {reason} ({joined})."
