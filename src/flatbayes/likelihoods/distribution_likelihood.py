"""Likelihood of any family of `torch.distributions`: counts, heavy tails, positive numbers, fractions, mixtures.

The outputs of a network become the parameters of a distribution, by a family with a name (`families.py`) or by a
function of the user's. The Bayesian model average is the mixture of the networks' distributions.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from flatbayes.core.devices import is_accelerator, to_double
from flatbayes.core.display import format_fields
from flatbayes.core.input_trees import FLATTEN_ADVICE
from flatbayes.core.names import format_count, format_suggestion
from flatbayes.likelihoods.distribution_functions import (
    compute_moments,
    find_bounds,
    get_support,
    set_validation,
    unwrap_independent,
)
from flatbayes.likelihoods.distribution_predictive import DistributionPredictive
from flatbayes.likelihoods.families import FAMILIES, SUPPORTS, Family, TargetKind, find_family, standardize_targets
from flatbayes.likelihoods.gaussian import location_scale_tensors, resolve_unit
from flatbayes.likelihoods.likelihood import Likelihood, format_wrong_outputs

MapOutputs = Callable[[Tensor], Distribution]
PROBE = 0.5
"""Value of all outputs at which a function of the user's is called to learn the shape of its targets."""


@dataclass(frozen=True)
class DistributionLikelihood(Likelihood):
    """Targets have a distribution of a family with a name, or of a function of the outputs.

    A family with a name is saved in artefacts as data. A function is code, which is not saved: `load` takes the
    likelihood again, as for `Custom`.

    Attributes:
        distribution: Name of a family: `Poisson`, `NegativeBinomial`, `ZeroInflatedPoisson` and
            `ZeroInflatedNegativeBinomial` for counts, `StudentT` and `Laplace` for numbers with outliers,
            `LogNormal`, `Gamma` and `Weibull` for positive numbers, `Beta` for fractions. Or a function from outputs,
            shape (batch, num_outputs), to a distribution of the batch shape (batch,) or, for several targets, (batch,
            targets) or with an event of the shape (targets,).
        num_outputs: Number of outputs of a network for each example; for a family with a name it is that of its
            parameters, times the number of targets: all first parameters, then all second ones.
        num_targets: Number of targets of each example; a function tells it.
        location: For a family of numbers, the target where the first output is 0, one number per target; () for
            zeros.
        scale: For a family with a name, the unit in which it measures targets, one number per target; () for ones.

    Examples:
        >>> counts = DistributionLikelihood("NegativeBinomial")
        >>> counts.num_outputs, counts.loss(torch.zeros(3, 2), torch.tensor([0.0, 1.0, 4.0])).isfinite()
        (2, tensor(True))
        >>> from torch.distributions import Poisson
        >>> own = DistributionLikelihood(lambda outputs: Poisson(outputs[:, 0].exp()), num_outputs=1)
        >>> own.predictive([torch.zeros(2, 1)]).variance
        tensor([1., 1.], dtype=torch.float64)
    """

    distribution: str | MapOutputs
    num_outputs: int = 0
    num_targets: int = 1
    location: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    __repr__ = format_fields

    def __post_init__(self) -> None:
        if isinstance(self.distribution, str):
            self._init_family(self.distribution)
        elif not callable(self.distribution):
            raise TypeError(
                f"distribution must be the name of a family or a function of outputs, got {self.distribution!r}."
            )
        else:
            self._init_function()

    def _init_family(self, given: str) -> None:
        name = find_family(given)
        if name is None:
            raise ValueError(
                f"Unknown family {given!r}. {format_suggestion(given, FAMILIES)}Known: {', '.join(FAMILIES)}; or "
                "give a function from outputs to a distribution of torch.distributions."
            )
        object.__setattr__(self, "distribution", name)
        if self.num_targets < 1:
            raise ValueError(f"There must be at least 1 target, got num_targets={self.num_targets}.")
        num_outputs = FAMILIES[name].num_parameters * self.num_targets
        if self.num_outputs not in (0, num_outputs):
            raise ValueError(
                f"{name} has {format_count(num_outputs, 'output')} for {format_count(self.num_targets, 'target')}, "
                f"got num_outputs={self.num_outputs}: leave it out."
            )
        object.__setattr__(self, "num_outputs", num_outputs)
        for field, values in resolve_unit(self.location, self.scale, self.num_targets, type(self).__name__).items():
            object.__setattr__(self, field, values)

    def _init_function(self) -> None:
        if self.num_outputs < 1:
            raise ValueError(
                "A function from outputs to a distribution needs num_outputs, the number of outputs of a network for "
                f"each example; got {self.num_outputs}."
            )
        if self.location or self.scale:
            raise ValueError("location and scale are for families with a name: put them into the function.")
        try:
            with set_validation(False):
                example = self.make_distribution(torch.full((2, self.num_outputs), PROBE))
        except Exception as error:
            raise ValueError(
                f"The function fails for outputs of the shape (2, {self.num_outputs}): {error}. It must take outputs "
                "of the shape (batch, num_outputs), and treat all examples alike."
            ) from error
        shape = (*example.batch_shape, *example.event_shape)
        if len(shape) not in (1, 2) or example.batch_shape[:1] != (2,):
            raise ValueError(
                f"For 2 examples the function gives a distribution of the batch shape {tuple(example.batch_shape)} "
                f"and the event shape {tuple(example.event_shape)}: expected (2,) for one target, or (2, targets)."
            )
        object.__setattr__(self, "num_targets", math.prod(shape[1:]))

    @staticmethod
    def fit(distribution: str, targets: Float[Tensor, "examples ..."]) -> "DistributionLikelihood":
        """Make the likelihood of a family with the location and scale of these targets, so that their unit is free.

        Args:
            distribution: Name of a family.
            targets: Training targets, shape (examples,) or (examples, targets).

        Raises:
            ValueError: There are none, or some are no targets of the family, or all of them are equal.
        """
        if targets.ndim not in (1, 2) or not len(targets):
            raise ValueError(
                f"Expected targets of the shape (examples,) or (examples, targets), at least one, got "
                f"{tuple(targets.shape)}.{f' {FLATTEN_ADVICE}' if targets.ndim > 2 else ''}"
            )
        rows = targets.detach().cpu().double().reshape(len(targets), -1)
        plain = DistributionLikelihood(distribution, num_targets=rows.shape[1])
        plain.prepare_targets(rows)
        constant = (rows == rows[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"Target {constant[0]} is {float(rows[0, constant[0]]):g} in all {len(rows)} training examples, so "
                "there is nothing to learn. Check that it is read from the right column, or give more examples."
            )
        name = str(plain.distribution)
        location, scale = standardize_targets(FAMILIES[name].targets, rows)
        return DistributionLikelihood(
            name, num_targets=rows.shape[1], location=tuple(location.tolist()), scale=tuple(scale.tolist())
        )

    @property
    def family(self) -> Family | None:
        """The family with a name; None for a function."""
        return FAMILIES[self.distribution] if isinstance(self.distribution, str) else None

    @property
    def target_kind(self) -> TargetKind:
        """What the targets are; those of a function by the bounds of their support, whole numbers or not."""
        if self.family is not None:
            return self.family.targets
        low, high = find_bounds(get_support(self._make_plain(torch.full((1, self.num_outputs), PROBE))))
        if isinstance(low, Tensor) or isinstance(high, Tensor) or low != 0:  # tensors depend on the outputs
            return "numbers"
        return "positive numbers" if high == math.inf else "fractions" if high == 1 else "numbers"

    @property
    def _target_shape(self) -> tuple[int, ...]:
        return () if self.num_targets == 1 else (self.num_targets,)

    def make_distribution(self, outputs: Float[Tensor, "batch outputs"]) -> Distribution:
        """The distribution of targets given outputs; independent targets of an example are in its batch shape.

        Args:
            outputs: Outputs of a network.

        Raises:
            ValueError: They are not `num_outputs` for each example.
        """
        self.check_outputs(outputs)
        family = self.family
        if family is None:
            assert not isinstance(self.distribution, str)
            return unwrap_independent(self.distribution(outputs))
        location, scale = location_scale_tensors(self.location, self.scale, outputs.dtype, outputs.device)
        parameters = outputs.chunk(family.num_parameters, dim=1)
        if self.num_targets == 1:
            parameters, location, scale = tuple(p.squeeze(1) for p in parameters), location[0], scale[0]
        return family.build(parameters, location, scale)

    def compute_moments(self, outputs: Float[Tensor, "batch outputs"]) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets given outputs, each of the shape (batch, num_targets).

        They are infinite or NaN where the distribution has none.

        Args:
            outputs: Outputs of a network.

        Raises:
            ValueError: They are not `num_outputs` for each example.
            NotImplementedError: torch has no mean or variance of the distribution.
        """
        mean, variance = compute_moments(self._make_plain(outputs))
        return (mean, variance) if mean.ndim == 2 else (mean.unsqueeze(1), variance.unsqueeze(1))

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Numbers of shape (batch, num_targets), or (batch,) for one target.

        Raises:
            ValueError: They have another shape, or one of them is not finite or outside of the support.
        """
        allowed = {(len(targets), self.num_targets), (len(targets), *self._target_shape)} if targets.ndim else set()
        if tuple(targets.shape) not in allowed or targets.is_complex():
            raise ValueError(
                f"Each example must have {format_count(self.num_targets, 'target')}, shape (examples, "
                f"{self.num_targets}); got {targets.dtype} of shape {tuple(targets.shape)}."
                f"{f' {FLATTEN_ADVICE}' if targets.ndim > 2 else ''}"
            )
        if not is_accelerator(targets):
            is_wrong = self._find_invalid(targets)
            if is_wrong.any():
                first = is_wrong.nonzero()[0].tolist()
                value = float(targets[tuple(first)])
                raise ValueError(
                    f"{format_count(int(is_wrong.sum()), 'target is', 'targets are')} outside of the support of "
                    f"{self._describe()}, the first, {value:g}, in row {first[0]} (counted from 0). "
                    f"{self._advise(value)}"
                )
        return targets

    def _find_invalid(self, targets: Tensor) -> Tensor:
        family = self.family
        if family is not None:
            return family.find_invalid(targets)
        support = get_support(self._make_plain(torch.full((1, self.num_outputs), PROBE)))
        inner = getattr(support, "base_constraint", support)
        if any(isinstance(value, Tensor) for value in vars(inner).values()) or support.event_dim:
            return ~targets.isfinite()  # the support depends on the outputs
        is_inside: Tensor = support.check(targets.double())
        return ~(targets.isfinite() & is_inside)

    def _describe(self) -> str:
        family = self.family
        return "the distribution" if family is None else f"{self.distribution}, {SUPPORTS[family.targets]}"

    def _advise(self, value: float) -> str:
        if not math.isfinite(value):
            return "Leave out examples without a target."
        family = self.family
        if family is not None and family.targets == "counts":
            return "Use Gaussian or StudentT for numbers with signs or fractions."
        return "Correct such targets, leave them out, or choose another family."

    def check_outputs(self, outputs: Tensor) -> None:
        """Check that there are `num_outputs` for each example.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.num_outputs:
            need = f"the likelihood has {format_count(self.num_outputs, 'output')} for each example"
            raise ValueError(format_wrong_outputs(outputs, need, self.num_outputs, f" {FLATTEN_ADVICE}"))

    def loss(self, outputs: Float[Tensor, "batch outputs"], targets: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """Mean negative log density, summed over the targets of an example, per unit of the targets.

        Args:
            outputs: Outputs of a network.
            targets: In their own unit, shape (batch, num_targets), or (batch,) for one target.

        Raises:
            ValueError: The outputs or targets have another shape, or the outputs are no parameters of the
                distribution.
        """
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        shape = (len(outputs), *self._target_shape)
        if targets.shape != shape and targets.shape != (len(outputs), self.num_targets):
            raise ValueError(f"Expected targets of the shape {shape}, got {tuple(targets.shape)}.")
        with set_validation(False):
            distribution = self.make_distribution(outputs)
            values = targets.to(outputs.dtype).reshape(*distribution.batch_shape, *distribution.event_shape)
            loss = -distribution.log_prob(values).sum() / len(outputs)
        self._explain_invalid(loss, outputs)
        return loss

    def _explain_invalid(self, loss: Tensor, outputs: Tensor) -> None:
        """Raise the error of torch where outputs are finite and no parameters of a distribution of the user's."""
        if self.family is not None or is_accelerator(loss):
            return
        try:
            is_wrong = not bool(loss.isfinite()) and bool(outputs.isfinite().all())
        except RuntimeError:  # networks that train together, whose values cannot be read
            return
        if is_wrong:
            self._check_parameters(outputs.detach())

    def _check_parameters(self, outputs: Tensor) -> None:
        try:
            with set_validation(True):
                self.make_distribution(outputs)
        except ValueError as error:
            raise ValueError(
                f"Outputs of the network are no parameters of the distribution: {error} Map them to valid ones, such "
                "as by torch.nn.functional.softplus or exp."
            ) from error

    def predictive(
        self, outputs: Iterable[Float[Tensor, "batch outputs"]], *, keep_members: bool = False
    ) -> DistributionPredictive:
        """The mixture of the networks' distributions.

        Args:
            outputs: Outputs of each network for the same examples. Iterated once.
            keep_members: Has no effect, since members are always kept.

        Raises:
            ValueError: The outputs are no parameters of the distribution, or there are none.
        """
        members = [to_double(member_outputs) for member_outputs in outputs]
        if not members:
            raise ValueError("There is no prediction without networks: ask for at least 1 draw.")
        for member in members:
            self.check_outputs(member)
        stacked = torch.stack(members)
        if self.family is None and not is_accelerator(stacked):
            self._check_parameters(stacked.flatten(0, 1))
        return DistributionPredictive(stacked, self._make_plain, self.family is not None)

    def _make_plain(self, outputs: Tensor) -> Distribution:
        with set_validation(False):
            return self.make_distribution(outputs)
