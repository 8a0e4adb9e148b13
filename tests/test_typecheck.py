"""The import hook checks annotations of the package while the tests run."""

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

import typecheck
from flatbayes.core.gaussians import LowRankGaussian
from flatbayes.flatness.fisher_sam import relative_weight
from flatbayes.theory.gibbs import worst_loss

is_decorated = hasattr(LowRankGaussian.__init__, "__wrapped__")
pytestmark = pytest.mark.skipif(not is_decorated, reason="the import hook of jaxtyping is not installed")


def test_shapes_agree_across_the_fields_of_a_dataclass():
    columns = [torch.zeros(3), torch.ones(3), torch.zeros(2, 3)]
    LowRankGaussian([], *columns, scale=1.0)
    with pytest.raises(jaxtyping.TypeCheckError, match="deviations"):
        LowRankGaussian([], *columns[:2], torch.zeros(2, 4), scale=1.0)


def test_a_function_with_a_shape_refuses_another_dtype():
    with pytest.raises(jaxtyping.TypeCheckError, match="loss"):
        worst_loss(torch.arange(3), 1.0)


def test_a_function_without_a_shape_refuses_another_type():
    with pytest.raises(BeartypeCallHintViolation, match="eta"):
        relative_weight([torch.ones(2)], "0.1")


def make_decorated(function):
    return typecheck.check_annotations(function, typechecker=typecheck.check_types)


def test_the_result_and_shapes_inside_unions_and_sequences_are_checked():
    def first(rows: list[Float[Tensor, " n"]], other: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        return rows[0][:2]

    checked = make_decorated(first)
    assert checked([torch.zeros(2)]).shape == (2,)
    for arguments in ([torch.zeros(3)],), ([torch.zeros(2)], torch.zeros(3)):
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(*arguments)


def test_a_function_inside_a_function_without_a_shape_is_left_as_it_is():
    def closure(x: int) -> int:
        return x

    assert make_decorated(closure) is closure
