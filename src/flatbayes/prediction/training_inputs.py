"""Statistics of the training inputs, by which inputs that are unlike them are found.

Three are kept, a few kilobytes in all: the range of every feature of a table; mean and principal components of the
standardised features of a table, or of the inputs of the last linear layer for images, for a Mahalanobis distance
(probabilistic PCA: Tipping and Bishop, JRSS B 1999; in feature space: Lee et al., NeurIPS 2018); and the smallest
hashes of rows (a bottom-k sketch: Cohen and Kaplan, PODC 2007), by which the fraction of rows is estimated that are
training rows too. Components come from every second row, and the largest distance from the others, since the
distances of the rows that determine the components are too small.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flatbayes.core.devices import to_double
from flatbayes.core.display import format_fields

MAX_COMPONENTS = 16
MAX_ROWS = 4000
"""Largest number of rows from which components and distances are computed, evenly spaced."""
MAX_GRAM_ROWS = 500
"""The same for inputs with more features than this."""
MAX_HASHES = 1024
MAX_HASHED_ELEMENTS = 2**25
"""Rows of larger data are not hashed."""
MIN_ROWS = 10
FAR_QUANTILE = 0.95
DISTANCE_MARGIN = 1.5
"""Factor on the largest distance of a training example."""
RANGE_MARGIN = 0.5
"""Margin beyond the range of a feature, as a part of the range."""
HASH_FACTORS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd multipliers of 64 bits: the golden ratio, and those of the finaliser of SplitMix64 (Steele et al., 2014)."""


@dataclass(frozen=True, eq=False)
class InputDistance:
    """How far inputs are from the training inputs.

    Attributes:
        distance: Mahalanobis distance as a multiple of 1.5 times that of the farthest training example.
        is_far: Whether the distance is above that of 95 % of the training examples.
        outside_fraction: Fraction of the features that are outside of their range in the training data by more than
            half of the range; zero for images.

    Examples:
        >>> distance = fitted.measure_input_distance(inputs)
        >>> distance.is_outside.shape, float(distance.distance.median()) < 1
        (torch.Size([100]), True)
    """

    distance: Float[Tensor, " examples"]
    is_far: Bool[Tensor, " examples"]
    outside_fraction: Float[Tensor, " examples"]

    __repr__ = format_fields

    @property
    def is_outside(self) -> Bool[Tensor, " examples"]:
        """Whether an input is farther than that, or any of its features outside."""
        return (self.distance > 1) | (self.outside_fraction > 0)


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """Statistics of training inputs, all on the CPU.

    Attributes:
        lowest: Smallest value of each feature of a table, [features]; empty for images.
        highest: Largest values.
        mean: Mean of the representation, [size].
        components: Orthonormal principal components, [components, size].
        variances: Variances along them, [components].
        residual_variance: Mean variance of the other directions.
        distances: Distance below which 95 % of the training examples lie, and the largest.
        hashes: Smallest hashes of the rows, ascending.
        num_rows: Number of rows, and of distinct ones; zeros where they are not hashed.
    """

    lowest: Tensor
    highest: Tensor
    mean: Tensor
    components: Tensor
    variances: Tensor
    residual_variance: Tensor
    distances: Tensor
    hashes: Tensor
    num_rows: Tensor

    __repr__ = format_fields

    @classmethod
    def fit(cls, inputs: Tensor | None, represent: Callable[[Tensor], Tensor], sample: Tensor) -> Self | None:
        """Compute the statistics.

        Args:
            inputs: All raw inputs, for ranges and hashes; None for those in files, which are not read for it.
            represent: Makes the representation of raw inputs, [n, size].
            sample: At most `MAX_ROWS` raw inputs.

        Returns:
            None if there are too few, or they have no representation in vectors.
        """
        values = to_double(represent(sample)).cpu()
        if len(values) < MIN_ROWS or values.ndim != 2 or not bool(values.isfinite().all()):
            return None
        if values.shape[1] > MAX_GRAM_ROWS:
            values = values[:: -(-len(values) // MAX_GRAM_ROWS)]
        mean, components, variances, residual = fit_components(values[::2])
        held_out = measure_mahalanobis(values[1::2], mean, components, variances, residual)
        distances = torch.stack([held_out.quantile(FAR_QUANTILE), held_out.max()])
        table = inputs if inputs is not None and inputs.ndim == 2 else values.new_empty(0, 1)
        is_hashed = inputs is not None and 0 < inputs.numel() <= MAX_HASHED_ELEMENTS
        hashes, count = torch.empty(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        if is_hashed and inputs is not None:
            distinct = hash_rows(inputs).unique()
            hashes, count = distinct[:MAX_HASHES].clone(), torch.tensor([len(inputs), len(distinct)])
        ends = (table.amin(0), table.amax(0)) if len(table) else (table[:0, 0], table[:0, 0])
        lowest, highest = (to_double(values).cpu() for values in ends)
        mean, components, variances, residual, distances = (
            tensor.float() for tensor in (mean, components, variances, residual, distances)
        )
        return cls(lowest, highest, mean, components, variances, residual, distances, hashes, count)

    def measure(self, inputs: Tensor, represent: Callable[[Tensor], Tensor]) -> InputDistance:
        """Compare inputs with those of training."""
        values = to_double(represent(inputs)).cpu()
        statistics = (self.mean, self.components, self.variances, self.residual_variance)
        distances = measure_mahalanobis(values, *(tensor.double() for tensor in statistics))
        far, farthest = self.distances.double().clamp_min(torch.finfo(torch.float32).tiny)
        outside = torch.zeros(len(values), dtype=torch.float64)
        if len(self.lowest) and inputs.ndim == 2:
            outside = find_outside(to_double(inputs).cpu(), self.lowest, self.highest).double().mean(1)
        return InputDistance(distances / (DISTANCE_MARGIN * farthest), distances > far, outside)

    def estimate_duplicates(self, inputs: Tensor) -> tuple[float, int] | None:
        """Estimate the fraction of inputs that are training inputs too.

        Returns:
            The fraction, and the number of inputs that it is computed from; None if training inputs were not hashed.
        """
        if not len(self.hashes):
            return None
        hashes = hash_rows(inputs)
        is_complete = int(self.num_rows[1]) <= len(self.hashes)
        candidates = hashes if is_complete else hashes[hashes <= self.hashes[-1]]
        if not len(candidates):
            return None
        return float(torch.isin(candidates, self.hashes).double().mean()), len(candidates)

    @property
    def repeated_fraction(self) -> float:
        """Fraction of the training inputs that repeat an earlier one."""
        rows, distinct = (int(value) for value in self.num_rows)
        return 1 - distinct / rows if rows else 0.0

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, for an artefact."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Read what `to_tensors` returned.

        Raises:
            ValueError: Tensors are missing, or do not fit each other.
        """
        names = [field.name for field in fields(cls)]
        if sorted(tensors) != sorted(names):
            raise ValueError(f"its statistics of training inputs are {sorted(tensors)}, not {names}.")
        statistics = cls(**tensors)
        size, count = statistics.mean.shape[-1:], statistics.variances.shape[-1:]
        shapes = {
            "mean": size,
            "components": (*count, *size),
            "variances": count,
            "residual_variance": (),
            "distances": (2,),
            "highest": statistics.lowest.shape[-1:],
            "lowest": statistics.lowest.shape[-1:],
            "hashes": statistics.hashes.shape[-1:],
            "num_rows": (2,),
        }
        for name, shape in shapes.items():
            is_whole = name in ("hashes", "num_rows")
            if tensors[name].shape != tuple(shape) or (tensors[name].dtype == torch.int64) != is_whole:
                raise ValueError(f"its statistics of training inputs have a {name} of another shape or type.")
        return statistics


def fit_components(
    values: Float[Tensor, "rows size"],
) -> tuple[Float[Tensor, " size"], Float[Tensor, "components size"], Float[Tensor, " components"], Float[Tensor, ""]]:
    """Mean, principal components, variances along them, and the mean variance of the remaining directions.

    There is one component for every 20 rows at most, so that small data give wide distributions.
    """
    mean = values.mean(0)
    centred = values - mean
    _, singular_values, directions = torch.linalg.svd(centred, full_matrices=False)
    variances = singular_values.square() / max(1, len(values) - 1)
    count = min(MAX_COMPONENTS, max(1, len(values) // 20), len(variances))
    num_others = values.shape[1] - count
    smallest = 1e-6 * variances.sum() / values.shape[1] + torch.finfo(torch.float32).tiny
    residual = variances[count:].sum() / max(1, num_others)
    return mean, directions[:count], variances[:count].clamp_min(smallest), residual.clamp_min(smallest)


def measure_mahalanobis(
    values: Float[Tensor, "rows size"],
    mean: Float[Tensor, " size"],
    components: Float[Tensor, "components size"],
    variances: Float[Tensor, " components"],
    residual_variance: Float[Tensor, ""],
) -> Float[Tensor, " rows"]:
    """Mahalanobis distance under probabilistic PCA, with one variance in all directions that have no component."""
    centred = values - mean
    projected = centred @ components.T
    residuals = (centred.square().sum(1) - projected.square().sum(1)).clamp_min(0)
    squares: Tensor = (projected.square() / variances).sum(1) + residuals / residual_variance
    return squares.sqrt()


def find_outside(
    inputs: Float[Tensor, "rows features"], lowest: Float[Tensor, " features"], highest: Float[Tensor, " features"]
) -> Bool[Tensor, "rows features"]:
    """Which values are outside of a range by more than half of it; any other value of a constant feature is.

    >>> find_outside(torch.tensor([[1.4], [1.6], [-0.6]]), torch.zeros(1), torch.ones(1)).flatten().tolist()
    [False, True, True]
    """
    margin = RANGE_MARGIN * (highest - lowest)
    return (inputs < lowest - margin) | (inputs > highest + margin)


def hash_rows(inputs: Tensor) -> Int[Tensor, " rows"]:
    """A hash of the float32 values of each row, [rows, ...]; equal rows have equal ones."""
    hashes = []
    size = max(1, MAX_HASHED_ELEMENTS // 8 // max(1, inputs[:1].numel()))
    for block in inputs.detach().split(size):
        words = (block.cpu().float().flatten(1) + 0.0).contiguous().view(torch.int32).long()  # -0 becomes 0
        factors = _mix(torch.arange(1, words.shape[1] + 1) * HASH_FACTORS[0]) | 1
        hashes.append(_mix((words * factors).sum(1)))
    return torch.cat(hashes) if hashes else torch.empty(0, dtype=torch.int64)


def _mix(values: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in arithmetic modulo 2^64."""
    values = (values ^ ((values >> 30) & (2**34 - 1))) * HASH_FACTORS[1]
    values = (values ^ ((values >> 27) & (2**37 - 1))) * HASH_FACTORS[2]
    return values ^ ((values >> 31) & (2**33 - 1))
