"""VaSSO and Friendly SAM: averages of gradients, and the directions that they decide."""

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import SAM, FriendlySAM, VaSSO
from flatbayes.flatness.friendly_sam import friendly_perturbation


def vector(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


class Sloped(nn.Module):
    """The loss w·slope + w·w / 2, with another slope at every step; records where it is computed."""

    def __init__(self, *values, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(vector(*values, dtype=dtype))
        self.seen = []

    def closure(self, slope):
        def closure():
            self.zero_grad()
            self.seen.append(self.w.detach().clone())
            loss = self.w @ slope + self.w @ self.w / 2
            loss.backward()
            return loss.detach()

        return closure


def run_steps(flat, slopes, dtype=torch.float64):
    """The perturbation of every step at fixed weights, [steps, weights], and the plain gradients."""
    model, progress, directions = Sloped(1.0, -2.0, 0.5, dtype=dtype), TrainingProgress(), []
    for slope in slopes:
        flat(model.closure(slope), model, progress)()
        directions.append(model.seen[-1] - model.seen[-2])
        progress.advance()
    return torch.stack(directions), torch.stack([slope + model.w.detach() for slope in slopes])


SLOPES = [vector(3.0, 4.0, 0.0), vector(-2.0, 0.0, 1.0), vector(0.0, 1.0, 5.0)]
CONSTANT = [SLOPES[0]] * 4


def test_the_direction_of_vasso_is_the_average_that_begins_with_the_first_gradient():
    directions, g = run_steps(VaSSO(rho=0.5, theta=0.4), SLOPES)
    averages = [g[0]]
    for grad in g[1:]:
        averages.append(0.6 * averages[-1] + 0.4 * grad)
    torch.testing.assert_close(directions, torch.stack([0.5 * m / m.norm() for m in averages]))


@pytest.mark.parametrize(
    ("flat", "slopes"),
    [(VaSSO(rho=0.5, theta=1.0), SLOPES), (VaSSO(rho=0.5, theta=0.2), CONSTANT), (FriendlySAM(0.5, 0.0), SLOPES)],
    ids=["theta 1", "constant gradient", "sigma 0"],
)
def test_limits_are_sam(flat, slopes):
    torch.testing.assert_close(run_steps(flat, slopes)[0], run_steps(SAM(rho=0.5), slopes)[0], rtol=1e-14, atol=1e-14)


def test_the_direction_of_friendly_sam_is_the_gradient_minus_the_average_before_it():
    directions, g = run_steps(FriendlySAM(rho=0.5, sigma=0.7, momentum=0.8), SLOPES)
    average, expected = torch.zeros(3, dtype=torch.float64), []
    for k, grad in enumerate(g):
        d = grad - 0.7 * average
        expected.append(0.5 * d / d.norm())
        average = grad if k == 0 else 0.8 * average + 0.2 * grad
    torch.testing.assert_close(directions, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_noise_is_not_scaled_up_to_the_radius(dtype):
    directions, _ = run_steps(FriendlySAM(rho=0.5), [slope.to(dtype) / 3 for slope in CONSTANT], dtype)
    assert directions[0].norm().item() == pytest.approx(0.5)
    assert directions[1:].norm(dim=1).max() <= 0.1  # a tenth of the resolution or less
    noise = [vector(1.0, 1.0) * (1 + torch.finfo(torch.float64).eps)]
    assert friendly_perturbation(noise, [vector(1.0, 1.0)], 1.0, 0.5).to_tensors()[0].norm() <= 0.051


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VaSSO(theta=0.0), "theta must be above 0"),
        (lambda: FriendlySAM(sigma=-1.0), "sigma must be finite"),
        (lambda: FriendlySAM(momentum=1.0), "momentum must be"),
    ],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_loss_only_where_the_direction_is_that_of_sam():
    assert [f.stationary_after for f in (VaSSO(theta=1.0), FriendlySAM(sigma=0.0))] == [0, 0]
    assert [f.stationary_after for f in (VaSSO(), FriendlySAM())] == [float("inf")] * 2
