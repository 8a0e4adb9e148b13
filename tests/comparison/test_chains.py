import pytest
import torch
from torch.testing import assert_close

from flatbayes.comparison.chains import Rows, closure_of, offset_by_row, sam_by_row
from flatbayes.flatness import SAM
from flatbayes.posteriors import SGHMC, SGLD, SGVB
from flatbayes.theory import sharp_and_flat


def rows(num, num_params=2):
    return torch.randn(num, num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("ascent_steps", [1, 4])
def test_every_row_gets_what_sam_gives_it_alone(ascent_steps):
    wells, start = sharp_and_flat(2), rows(40)
    start[0] = 9.0  # on the plateau, where there is no way up
    together = Rows(start)
    sam_by_row(closure_of(together, wells.gradient), together, 0.25, ascent_steps)()
    for row, found in zip(start, together.weight.grad, strict=True):
        alone = Rows(row[None])
        SAM(0.25, ascent_steps)(closure_of(alone, wells.gradient), alone)()
        assert_close(found, alone.weight.grad[0], rtol=1e-12, atol=1e-14)
    assert torch.equal(together.weight.detach(), start)
    assert together.weight.grad[0].tolist() == [0.0, 0.0]
    joined = Rows(start)
    SAM(0.25, ascent_steps)(closure_of(joined, wells.gradient), joined)()
    assert (joined.weight.grad - together.weight.grad).abs().max() > 0.1  # one ball for all is another thing


@pytest.mark.parametrize(
    "posterior", [SGLD(prior_precision=1.0), SGHMC(prior_precision=1.0), SGVB()], ids=lambda p: type(p).__name__
)
def test_one_row_is_one_network_with_sam(posterior):
    """The whole run, with its randomness."""
    ends = []
    for flat in (lambda c, m: sam_by_row(c, m, 0.2), SAM(0.2)):
        torch.manual_seed(3)
        model = Rows(rows(1))
        state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=0.05), 10)
        closure = flat(closure_of(model, sharp_and_flat(2).gradient), model)
        for _ in range(30):
            posterior.step(state, closure)
        ends.append(model.weight.detach().clone())
    assert_close(*ends, rtol=1e-11, atol=1e-13)
    assert (ends[0] - rows(1)).abs().max() > 0.01


def test_radius_zero_is_the_closure_itself():
    model = Rows(rows(3))
    closure = closure_of(model, sharp_and_flat(2).gradient)
    assert sam_by_row(closure, model, 0.0) is closure


def test_offsets_have_the_length_of_the_radius():
    grad = rows(5)
    grad[2] = 0.0
    offset = offset_by_row(grad, 0.3)
    assert_close(offset.norm(dim=1), torch.tensor([0.3, 0.3, 0.0, 0.3, 0.3], dtype=torch.float64))
    assert_close((offset * grad).sum(1), 0.3 * grad.norm(dim=1))


def test_the_start_is_left_alone():
    start = rows(3)
    model = Rows(start)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(start, rows(3))


@pytest.mark.parametrize(
    ("rho", "steps", "message"), [(-1.0, 1, "rho is the radius"), (0.1, 0, "ascent_steps must be")]
)
def test_bad_input_says_what_is_wrong(rho, steps, message):
    model = Rows(rows(2))
    with pytest.raises(ValueError, match=message):
        sam_by_row(closure_of(model, torch.zeros_like), model, rho, steps)
