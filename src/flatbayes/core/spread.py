"""The Gaussian that weights come from, told to whoever is called inside, without either side knowing the other.

A posterior that has a mean and a standard deviation for its weights offers them around the closure that it calls; a
flatness whose geometry they are asks for them. Offers are local to the thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor


@dataclass(frozen=True)
class DiagonalGaussian:
    """A factorised Gaussian over one parameter.

    Attributes:
        mean: Means, in the parameter's shape.
        std: Standard deviations, positive, in the parameter's shape.
    """

    mean: Tensor
    std: Tensor


_WEIGHT_DISTRIBUTIONS: ContextVar[Mapping[Tensor, DiagonalGaussian]] = ContextVar(
    "offers", default=MappingProxyType({})
)


@contextmanager
def weight_distribution(params: Sequence[Tensor], means: Sequence[Tensor], stds: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter has this spread; those of an outer context keep theirs unless offered anew.

    Args:
        params: The tensors that the model holds, whatever their values are at the moment.
        means: One tensor of means per parameter, of its shape.
        stds: One tensor of standard deviations per parameter, of its shape.
    """
    offers = {param: DiagonalGaussian(mean, std) for param, mean, std in zip(params, means, stds, strict=True)}
    token = _WEIGHT_DISTRIBUTIONS.set({**_WEIGHT_DISTRIBUTIONS.get(), **offers})
    try:
        yield
    finally:
        _WEIGHT_DISTRIBUTIONS.reset(token)


def get_weight_distribution(param: Tensor) -> DiagonalGaussian | None:
    """The spread that the parameter, this very tensor, has here; None where nobody offers one."""
    return _WEIGHT_DISTRIBUTIONS.get().get(param)
