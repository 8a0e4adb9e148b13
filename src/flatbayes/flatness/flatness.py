"""The interface of all flatnesses, and `Plain`, ordinary training without one.

A flatness maps a closure to a closure whose gradient is taken at other weights:

    flat_closure = flatness(closure, model, progress)
    loss = flat_closure()       # .grad holds the sharpness-aware gradient; the weights are unchanged
    optimizer.step()
    progress.advance()
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.components import forward_to
from flatbayes.core.display import format_fields
from flatbayes.core.parameter_selection import ParameterSelection, check_selection
from flatbayes.flatness.ascent import (
    PerturbationFn,
    check_ascent_batch_fraction,
    check_ascent_steps,
    check_nuisance,
    check_radius_or_auto,
    gradient_at_perturbation,
)

Radius = float | Literal["auto"]
"""Size of a perturbation, or `auto`: the trainings of flatbayes choose it on validation data."""


class Flatness(ABC):
    """Decides at which weights the gradient of a closure is taken.

    A call of the new closure returns a loss and leaves the sharpness-aware gradient in `.grad`. Weights, training
    flags and the random state are then as one call of the given closure would leave them. Buffers advance once, in
    the first pass (with `MSharpness` once for each sub-batch), and the loss is that of the first pass.

    Examples:
        >>> from flatbayes.core.weights import perturb
        >>> class Noisy(Flatness):
        ...     gradients_per_step = 1
        ...
        ...     def __call__(self, closure, model, progress=None):
        ...         params = list(model.parameters())
        ...
        ...         def noisy_closure():
        ...             with perturb(params, [torch.randn_like(param) for param in params], 0.01):
        ...                 return closure()
        ...
        ...         return noisy_closure
        >>> loss = Noisy()(closure, network)()
        >>> network.weight.grad.shape
        torch.Size([3, 4])
    """

    radius_field: ClassVar[str | None] = None
    """Name of the field that is the size of the perturbation; None without such a field."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):
            setattr(cls, "__repr__", format_fields)  # noqa: B010  # `dataclass` would print long lists whole

    @property
    def radius(self) -> Radius | None:
        """Size of the perturbation in the unit of this flatness; None if it has none."""
        radius: Radius | None = None if self.radius_field is None else getattr(self, self.radius_field)
        return radius

    @property
    def reference_radius(self) -> float:
        """The usual size, from which a search starts: the default of the field."""
        return float(getattr(type(self), str(self.radius_field)))

    def with_radius(self, radius: Radius) -> "Flatness":
        """This flatness with another size of the perturbation; `Plain()` for 0, which costs one gradient."""
        if self.radius_field is None:
            raise ValueError(f"{type(self).__name__} has no radius to set.")
        return Plain() if radius == 0 else replace(self, **{self.radius_field: radius})  # type: ignore[type-var]  # a dataclass

    @property
    def gradients_per_step(self) -> float:
        """Number of gradients that one call of the new closure costs, on average over training; default 2."""
        return 2.0

    @property
    def stationary_after(self) -> float:
        """Fraction of training after which the gradients estimate those of one fixed function of the weights.

        0, the default, for all of training; infinity for never. Samplers and variational posteriors need such
        gradients.
        """
        return 0.0

    @property
    def needs_weight_distribution(self) -> bool:
        """Whether the perturbation uses the Gaussian that a posterior has for the weights; default False."""
        return False

    @property
    def depends_on_loss_scale(self) -> bool:
        """Whether a loss times a constant has another perturbation, so that a loss scaler must not be used.

        Default False.
        """
        return False

    @abstractmethod
    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the sharpness-aware counterpart of a closure.

        Args:
            closure: Zeroes the gradients, computes the mean negative log likelihood, backpropagates it, and returns
                the detached loss.
            model: The module whose trainable parameters the closure depends on.
            progress: Step, seed, and the state that is kept between steps.

        Returns:
            A closure to be called once.

        Raises:
            ValueError: The flatness needs the progress of training, and it is not given.
        """


@dataclass(frozen=True)
class Plain(Flatness):
    """The identity: ordinary training, the baseline of every comparison.

    Use it as the baseline of every flatness.

    Examples:
        >>> flatness = Plain()
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        1
    """

    gradients_per_step = 1

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Return the closure unchanged."""
        return closure


class AscentFlatness(Flatness):
    """A flatness with the options of `gradient_at_perturbation`.

    The options that a method offers are fields of its dataclass; those that it does not offer have the values below.
    """

    ascent_steps: int = 1
    resample_noise: bool = False
    ascent_batch_fraction: float = 1.0
    params: ParameterSelection = "all"
    nuisance: list[str] | None = None

    def __post_init__(self) -> None:
        check_radius_or_auto(self.radius)  # type: ignore[arg-type]  # there is one
        check_nuisance(self.nuisance, self.ascent_batch_fraction)
        check_ascent_steps(self.ascent_steps)
        check_ascent_batch_fraction(self.ascent_batch_fraction)
        check_selection(self.params, "params")

    @property
    def gradients_per_step(self) -> float:
        """One, or a fraction of one, for each ascent step, and the final one."""
        return 1 + self.ascent_steps * self.ascent_batch_fraction

    def make_closure(
        self,
        perturbation_fn: PerturbationFn,
        closure: Closure,
        model: nn.Module,
        progress: TrainingProgress | None,
    ) -> Closure:
        """Make a closure whose gradient is taken at perturbed weights, with the options of this flatness."""
        return gradient_at_perturbation(
            perturbation_fn,
            closure,
            model,
            ascent_steps=self.ascent_steps,
            resample_noise=self.resample_noise,
            ascent_batch_fraction=self.ascent_batch_fraction,
            params=self.params,
            nuisance=self.nuisance,
            progress=progress,
        )


class FlatnessWrapper(Flatness):
    """A flatness that runs another one, its field `flatness`, and has its radius and its requirements."""

    flatness: Flatness

    radius = forward_to("flatness", "radius")
    reference_radius = forward_to("flatness", "reference_radius")
    stationary_after = forward_to("flatness", "stationary_after")
    depends_on_loss_scale = forward_to("flatness", "depends_on_loss_scale")
    needs_weight_distribution = forward_to("flatness", "needs_weight_distribution")

    def with_radius(self, radius: Radius) -> Flatness:
        """The wrapper of the inner flatness with another radius."""
        return replace(self, flatness=self.flatness.with_radius(radius))  # type: ignore[type-var]  # a dataclass


def require_radius(flatness: Flatness) -> float:
    """Return the radius as a number.

    Raises:
        ValueError: It is `auto`, which a single step cannot choose.
    """
    radius, name = flatness.radius, flatness.radius_field
    if radius is None or isinstance(radius, str):
        kind = type(flatness).__name__
        raise ValueError(
            f"{kind}({name}='auto') has no number yet: `fit`, `compare`, the estimators and the command line choose "
            "one on validation data. In a loop of your own, with Lightning or the Trainer give a number: "
            f"{kind}({name}={flatness.reference_radius:g}), or that of a fit, fitted.info['radius']['value']."
        )
    return radius


def require_progress(progress: TrainingProgress | None, flatness: Flatness) -> TrainingProgress:
    """Return the progress of training.

    Raises:
        ValueError: It is None.
    """
    if progress is None:
        raise ValueError(
            f"{type(flatness).__name__} needs the progress of training: write "
            "`progress = TrainingProgress(total_steps=...)` before the loop, `flatness(closure, model, progress)()` "
            "in it, and `progress.advance()` after each optimizer.step()."
        )
    return progress


def require_training_fraction(progress: TrainingProgress | None, flatness: Flatness) -> float:
    """Return the fraction of training that is done.

    Raises:
        ValueError: The progress is None, or its number of steps is not known.
    """
    progress = require_progress(progress, flatness)
    if progress.total_steps is None:
        raise ValueError(
            f"{type(flatness).__name__} needs the number of steps of the whole training: write "
            "`progress = TrainingProgress(total_steps=...)`."
        )
    return progress.fraction
