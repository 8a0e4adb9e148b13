import pytest
import torch
from torch.testing import assert_close

from flatbayes.flatness import SAM
from flatbayes.posteriors import SGHMC, SGLD, SGVB
from studies.double_well.batched_chains import BatchedChains, make_closure, make_row_sam_closure, row_perturbations
from studies.double_well.loss import make_sharp_and_flat_wells


def rows(num, num_params=2):
    return torch.randn(num, num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("ascent_steps", [1, 4])
def test_every_row_gets_what_sam_gives_it_alone(ascent_steps):
    wells, start = make_sharp_and_flat_wells(2), rows(40)
    start[0] = 9.0  # on the plateau, where there is no way up
    together = BatchedChains(start)
    make_row_sam_closure(make_closure(together, wells.gradient), together, 0.25, ascent_steps)()
    for row, found in zip(start, together.weight.grad, strict=True):
        alone = BatchedChains(row[None])
        SAM(0.25, ascent_steps)(make_closure(alone, wells.gradient), alone)()
        assert_close(found, alone.weight.grad[0], rtol=1e-12, atol=1e-14)
    assert torch.equal(together.weight.detach(), start)
    assert together.weight.grad[0].tolist() == [0.0, 0.0]
    joined = BatchedChains(start)
    SAM(0.25, ascent_steps)(make_closure(joined, wells.gradient), joined)()
    assert (joined.weight.grad - together.weight.grad).abs().max() > 0.1  # one ball for all is another thing


@pytest.mark.parametrize(
    "posterior", [SGLD(prior_precision=1.0), SGHMC(prior_precision=1.0), SGVB()], ids=lambda p: type(p).__name__
)
def test_one_row_is_one_network_with_sam(posterior):
    """The whole run, with its randomness."""
    ends = []
    for flat in (lambda c, m: make_row_sam_closure(c, m, 0.2), SAM(0.2)):
        torch.manual_seed(3)
        model = BatchedChains(rows(1))
        state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=0.05), 10)
        closure = flat(make_closure(model, make_sharp_and_flat_wells(2).gradient), model)
        for _ in range(30):
            posterior.step(state, closure)
        ends.append(model.weight.detach().clone())
    assert_close(*ends, rtol=1e-11, atol=1e-13)
    assert (ends[0] - rows(1)).abs().max() > 0.01


def test_radius_zero_is_the_closure_itself():
    model = BatchedChains(rows(3))
    closure = make_closure(model, make_sharp_and_flat_wells(2).gradient)
    assert make_row_sam_closure(closure, model, 0.0) is closure


def test_offsets_have_the_length_of_the_radius():
    grad = rows(5)
    grad[2] = 0.0
    offset = row_perturbations(grad, 0.3)
    assert_close(offset.norm(dim=1), torch.tensor([0.3, 0.3, 0.0, 0.3, 0.3], dtype=torch.float64))
    assert_close((offset * grad).sum(1), 0.3 * grad.norm(dim=1))


def test_the_start_is_left_alone():
    start = rows(3)
    model = BatchedChains(start)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(start, rows(3))


@pytest.mark.parametrize(
    ("rho", "steps", "message"), [(-1.0, 1, "rho is the radius"), (0.1, 0, "ascent_steps must be")]
)
def test_bad_input_says_what_is_wrong(rho, steps, message):
    model = BatchedChains(rows(2))
    with pytest.raises(ValueError, match=message):
        make_row_sam_closure(make_closure(model, torch.zeros_like), model, rho, steps)
