"""Gaussian distributions of weights, as a posterior offers them to a closure: products with their covariance.

A flatness whose geometry is that of the posterior needs, for a gradient g, the product Σ g and the length
sqrt(gᵀ Σ g): the maximum of <g, e> over the ball eᵀ Σ⁻¹ e <= ρ² is at e = ρ Σ g / sqrt(gᵀ Σ g), without an inverse. A
posterior with a covariance of another form implements `WeightDistribution`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.context import (
    CovarianceProduct,
    DiagonalGaussian,
    WeightDistribution,
    get_distribution,
    num_vectorized,
    offer_distribution,
)
from flatbayes.core.norms import combine_norms, tensor_norms
from flatbayes.core.tensor_lists import full_tensors, group_tensors


@dataclass(frozen=True, eq=False)
class IndependentWeights(WeightDistribution):
    """A Gaussian with a diagonal covariance.

    Attributes:
        marginals: The distribution of each parameter that has one, by the identity of its tensor.
    """

    marginals: Mapping[Tensor, DiagonalGaussian]

    def get_marginal(self, param: Tensor) -> DiagonalGaussian | None:
        """Mean and standard deviation of each weight of a parameter."""
        return self.marginals.get(param)

    def multiply_covariance(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> CovarianceProduct:
        """Compute std² v, group by group, so that intermediate results need the memory of one group."""
        products, norms = list(vectors), list(vectors)
        for group in group_tensors(vectors):
            stds = self._list_stds([params[k] for k in group])
            scaled = list(torch._foreach_mul([vectors[k] for k in group], stds))
            group_products = torch._foreach_mul(scaled, stds)
            for k, product, norm in zip(group, group_products, tensor_norms(scaled), strict=True):
                products[k], norms[k] = product, norm
        return CovarianceProduct(products, combine_norms(norms))

    def _list_stds(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Standard deviations of each parameter, 0 for those without a distribution."""
        stds = [self.marginals[param].std.to(param.dtype) if param in self.marginals else None for param in params]
        missing = [param.detach() for param, std in zip(params, stds, strict=True) if std is None]
        zeros = iter(full_tensors(missing, 0.0))
        return [next(zeros) if std is None else std for std in stds]


@dataclass(frozen=True, eq=False)
class UnknownDistribution(WeightDistribution):
    """What a posterior offers that will have a distribution later in training: the identity as its covariance."""

    is_estimated = False

    def get_marginal(self, param: Tensor) -> DiagonalGaussian | None:
        """None: there is none yet."""
        return None

    def multiply_covariance(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> CovarianceProduct:
        """Return the vectors and their norm."""
        return CovarianceProduct(list(vectors), combine_norms(tensor_norms(vectors)), is_new_memory=False)


@dataclass(frozen=True, eq=False)
class LowRankGaussian(WeightDistribution):
    """A Gaussian with the covariance scale * (diag(variance) + deviationsᵀ deviations / (rank - 1)).

    Vectors have the entries of all parameters, in order; see `flatten`.

    Attributes:
        params: Parameters with a distribution.
        mean: Their means.
        variance: Diagonal part of the covariance.
        deviations: One row for each of at least two deviations from the mean, or none; in any dtype, on any device.
        scale: Factor on the covariance.
    """

    params: Sequence[Tensor]
    mean: Float[Tensor, " params"]
    variance: Float[Tensor, " params"]
    deviations: Float[Tensor, "rank params"]
    scale: float

    def get_marginal(self, param: Tensor) -> DiagonalGaussian | None:
        """Mean and standard deviation of each weight of a parameter."""
        columns = self._locate_columns().get(param)
        if columns is None:
            return None
        variance = self.variance[columns]
        if len(self.deviations):
            rows = self.deviations[:, columns].to(variance)
            variance = variance + rows.square().sum(0) / (len(rows) - 1)
        std = (self.scale * variance).sqrt()
        return DiagonalGaussian(self.mean[columns].view(param.shape), std.view(param.shape))

    def multiply_covariance(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> CovarianceProduct:
        """Compute both parts of the product; parameters without a distribution have the product 0."""
        columns, networks = self._locate_columns(), num_vectorized() or 1
        products, halves, coefficients = full_tensors(vectors, 0.0), list[Tensor](), list[Tensor]()
        located = [(k, columns[param]) for k, param in enumerate(params) if param in columns]
        rank = len(self.deviations)
        for k, column in located:
            vector = vectors[k].reshape(networks, -1)
            variance = self.variance[column].view(networks, -1).to(vector.dtype) * self.scale
            halves.append((variance.sqrt() * vector).view(vectors[k].shape))
            products[k] = variance * vector
            if rank:
                rows = self.deviations[:, column].to(vector).view(rank, networks, -1)
                coefficients.append((rows * vector).sum(-1))
        norms = tensor_norms(halves)
        if rank:
            factor = self.scale / (rank - 1)
            total = torch.stack(coefficients).sum(0)  # of each deviation and network
            norm = torch.linalg.vector_norm(total, dim=0) * factor**0.5
            norms.append(norm if num_vectorized() else norm.squeeze(0))
            for k, column in located:
                rows = self.deviations[:, column].to(total).view(rank, networks, -1)
                products[k].add_(torch.einsum("rn,rns->ns", total, rows), alpha=factor)
        products = [product.view(vector.shape) for product, vector in zip(products, vectors, strict=True)]
        return CovarianceProduct(products, combine_norms(norms))

    def _locate_columns(self) -> dict[Tensor, slice]:
        columns, start = dict[Tensor, slice](), 0
        for param in self.params:
            columns[param] = slice(start, start + param.numel())
            start += param.numel()
        return columns


def invert_softplus(value: float) -> float:
    """The x with log(1 + exp(x)) = value, for a positive value, without overflow or cancellation.

    >>> from math import exp, log
    >>> round(log(1 + exp(invert_softplus(0.25))), 12)
    0.25
    """
    return value + math.log(-math.expm1(-value))


def weight_distribution(
    params: Sequence[Tensor], means: Sequence[Tensor], stds: Sequence[Tensor]
) -> AbstractContextManager[None]:
    """Inside, parameters have independent Gaussian weights, whatever their values are; others have the outer ones."""
    outer = get_distribution()
    marginals = dict(outer.marginals) if isinstance(outer, IndependentWeights) else {}
    marginals |= {param: DiagonalGaussian(mean, std) for param, mean, std in zip(params, means, stds, strict=True)}
    return offer_distribution(IndependentWeights(marginals))
