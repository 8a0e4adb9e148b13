"""Options of a posterior that only its draws depend on, so that `fit` can choose them on validation examples.

    train once, with all draw options at their defaults
    for each option that is "auto": for each candidate: NLL of the validation examples with draws at that value
    keep the largest value whose NLL is at most `margin` above the lowest; of an option with a tolerance the largest
    value that is within it; of others the default, unless the NLL of another value is lower by a standard error

Where a network fits its training data, draws of very different widths predict the examples equally well. The largest
width among these keeps networks that differ, which is what shows that an input is unlike the training data.

This costs forward passes, and no training. `Posterior.draw_options` names the options of a posterior.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

AutoFloat = float | Literal["auto"]
"""A number, or `auto`: chosen on validation examples after training."""

AUTO: Literal["auto"] = "auto"
T = TypeVar("T")


Criterion = Literal["nll", "pseudo_nll", "changed_classes"]
"""What an option may change: the NLL of the labels, that of the classes predicted at 0, or the predicted classes."""


@dataclass(frozen=True)
class Tolerance:
    """How much an option may change predictions from those at 0.

    Attributes:
        criterion: What is compared. `nll`: its increase relative to its size; `pseudo_nll`: its change, likewise;
            `changed_classes`: a share of the examples.
        max_change: Largest accepted change.
    """

    criterion: Criterion
    max_change: float


@dataclass(frozen=True)
class DrawOption:
    """An option that only draws depend on.

    Attributes:
        default: The value of `auto` without validation examples, and until one is chosen; and that of None.
        candidates: Values to try, in ascending order. With a tolerance, the search for the largest accepted value
            starts with these.
        tolerance: Accept the largest value within it; None to compare values by their NLL.
        margin: Nats by which the NLL of a larger value may be above the lowest one.
        has_means: Whether the geometric means of the best value and its neighbours are tried.
        keeps_default: Whether the default is kept unless another value is better by more than chance: by a standard
            error of the difference of the NLL.
    """

    default: float | None
    candidates: tuple[float, ...]
    tolerance: Tolerance | None = None
    margin: float = 0.0
    has_means: bool = True
    keeps_default: bool = False


MARGIN = 0.003
"""Margin of the width of draws: far less than the standard error of an NLL of a few hundred examples."""
COVARIANCE_SCALE = DrawOption(1.0, (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0), margin=MARGIN)
"""A factor on the covariance of the draws."""
BURN_IN = DrawOption(0.0, (0.0, 0.125, 0.25, 0.5), has_means=False, keeps_default=True)
"""The fraction of the snapshots that draws leave out, from the first on."""
END_FRACTION = DrawOption(1.0, (0.25, 0.5, 0.75, 1.0), has_means=False, keeps_default=True)
"""The fraction of the snapshots after which draws leave out the others."""
SCALE_OPTIONS: Mapping[str, DrawOption] = {"scale": COVARIANCE_SCALE}
"""The draw options of a posterior with no other than this."""


def scale_std(std: Tensor, scale: float) -> Tensor:
    """Multiply standard deviations with sqrt(scale); the tensor itself for scale 1, without a kernel on a device."""
    return std if scale == 1 else std * math.sqrt(scale)


def check_scale(scale: AutoFloat | None) -> None:
    """Validate a factor on the covariance of the draws.

    Raises:
        ValueError: The factor is neither a positive and finite number nor `auto` nor None.
    """
    if scale not in (AUTO, None) and (isinstance(scale, str) or not 0 < scale < math.inf):
        raise ValueError(
            f"scale multiplies the covariance: it must be positive and finite, or 'auto'; got {scale!r}."
        )


def check_fraction(name: str, value: AutoFloat | None, lowest: float, highest: float) -> None:
    """Refuse a fraction of the snapshots that is outside this range, and neither `auto` nor None."""
    if value not in (AUTO, None) and (isinstance(value, str) or not lowest <= value <= highest):
        raise ValueError(
            f"{name} is a fraction of the snapshots, from {lowest:g} to {highest:g}, or 'auto' or None; got "
            f"{value!r}."
        )


def get_fraction(value: AutoFloat | None, default: float) -> float:
    """A fraction of the snapshots, and the default until it is chosen."""
    return default if isinstance(value, str | None) else value


def get_draw_option(options: Mapping[str, DrawOption], component: Any, name: str) -> Any:
    """The value of an option, and its default in place of `auto` and None."""
    value = getattr(component, name)
    return options[name].default if value in (AUTO, None) else value


def list_auto_options(
    options: Mapping[str, DrawOption], component: Any, *, with_none: bool = False
) -> dict[str, DrawOption]:
    """The options whose value is `auto`, with `with_none` also those that are None, by dotted name."""
    wanted = (AUTO, None) if with_none else (AUTO,)
    return {name: option for name, option in options.items() if get_option(component, name) in wanted}


def get_option(component: Any, path: str) -> Any:
    """The field of a dataclass with a dotted name such as `member.scale`; the dataclass itself for an empty name."""
    return operator.attrgetter(path)(component) if path else component


def replace_option(component: T, path: str, value: Any) -> T:
    """A copy of a frozen dataclass with another value of a field, by a dotted name such as `member.scale`."""
    name, dot, rest = path.partition(".")
    new = replace_option(getattr(component, name), rest, value) if dot else value
    return replace(component, **{name: new})  # type: ignore[type-var]  # every posterior is a dataclass
