"""LookSAM: the orthogonal direction that is stored, and the steps that reuse it."""

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import SAM, LookSAM
from flatbayes.flatness.looksam import add_direction, orthogonal_direction
from support import Counted, batch, network


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_direction_is_orthogonal_to_the_gradient_and_in_the_plane_of_both():
    g, flat = [vector(1.0, 2.0), vector(-1.0)], [vector(2.0, 1.0), vector(3.0)]
    direction = torch.cat(orthogonal_direction(g, flat))
    torch.testing.assert_close(
        direction, vector(11.0, 4.0, 19.0) / vector(11.0, 4.0, 19.0).norm()
    )  # 6 flat - g, by g·flat / g·g = 1/6
    assert (direction @ torch.cat(g)).item() == pytest.approx(0, abs=1e-12)


def test_the_direction_is_zero_for_an_equal_or_a_zero_gradient():
    g = [torch.randn(1000)]
    assert not orthogonal_direction(g, [g[0].clone()])[0].any()
    assert orthogonal_direction([vector(0.0, 0.0)], [vector(0.0, 0.0)])[0].tolist() == [0, 0]


def test_the_added_length_is_relative_to_that_of_the_gradient_over_all_tensors():
    g = [vector(3.0), vector(0.0, 4.0)]
    add_direction(g, [vector(0.0), vector(1.0, 0.0)], 0.5)
    assert torch.cat(g).tolist() == [3, 2.5, 4]


class Bowl(nn.Module):
    """The loss of two weights with curvatures 5 and 1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(vector(0.3, -0.7))

    def closure(self):
        self.zero_grad()
        loss = (vector(5.0, 1.0) * self.w.square()).sum() / 2
        loss.backward()
        return loss.detach()


def test_periodic_steps_are_sam_and_the_others_reuse_its_direction():
    flat, reference, progress = Bowl(), Bowl(), TrainingProgress()
    method = LookSAM(rho=0.1, period=3, alpha=0.7)
    plain = vector(1.5, -0.7)
    for step in range(7):
        method(flat.closure, flat, progress)()
        if step % 3 == 0:
            SAM(rho=0.1)(reference.closure, reference)()
            assert torch.equal(flat.w.grad, reference.w.grad)
            rest = reference.w.grad - (reference.w.grad @ plain) / (plain @ plain) * plain
        else:
            torch.testing.assert_close(flat.w.grad, plain + 0.7 * plain.norm() * rest / rest.norm())
        progress.advance()


def test_the_first_step_runs_sam_whatever_its_number():
    model = network()
    closure, progress = Counted(model, *batch()), TrainingProgress(step=7)
    LookSAM(period=5)(closure, model, progress)()
    assert closure.calls == 2
    progress.advance()
    LookSAM(period=5)(closure, model, progress)()
    assert closure.calls == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: LookSAM(period=0), "period must be"), (lambda: LookSAM(alpha=-1.0), "alpha is a relative length")],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
