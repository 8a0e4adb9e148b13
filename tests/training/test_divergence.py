"""Training that diverges to finite weights is refused at its end, where draws overflow."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import Categorical, Gaussian, fit, posteriors
from flatbayes.flatness import Plain
from flatbayes.training import DivergenceWarning, TrainingConfig
from flatbayes.training.run_factory import suggest_standardization


@pytest.mark.filterwarnings("ignore:Weights that are trained")
def test_the_message_names_float16_weights_and_nothing_that_is_in_force():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(epochs=2, batch_size=4, optimizer=lambda params: torch.optim.AdamW(params, eps=1e-12))
    with pytest.raises(RuntimeError, match="weights of float32, model.float.*some are float16") as caught:
        fit(make_network().half(), (x, torch.arange(16) % 2), posteriors.MAP(), Plain(), config)
    assert "clipping (--optimization.clip_norm 1)" in str(caught.value)
    assert "32-true" not in str(caught.value)
    assert "radius" not in str(caught.value)


class Diverging(torch.optim.SGD):
    """Scales all weights in its last step, whose loss was finite."""

    num_steps = 0

    def step(self, closure=None):
        """Take a step."""
        super().step(closure)
        self.num_steps += 1
        if self.num_steps == 8:
            with torch.no_grad():
                for group in self.param_groups:
                    torch._foreach_mul_(group["params"], 1e15)


def make_network():
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2))


POSTERIORS = [
    posteriors.MAP(),
    posteriors.SWAG(rank=0),
    posteriors.SWAG(bfloat16=True),
    posteriors.SGLD(prior_precision=1.0),
    posteriors.SGHMC(prior_precision=1.0),
    posteriors.SGVB(),
    posteriors.LRT(),
    posteriors.MCDropout(),
    posteriors.Laplace("last_layer", "sampled", 1.0),
    posteriors.Laplace("diag", "linearised", 1.0),
    posteriors.Laplace("kron", "linearised", 1.0),
    posteriors.Ensemble(posteriors.SWAG(), 2),
]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=str)
def test_networks_that_overflow_after_the_last_step_are_refused_at_the_end_of_the_fit(posterior):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(epochs=2, batch_size=4, optimizer=lambda params: Diverging(params, lr=1e-3))
    message = "(drawn after training are|curvature of the loss is) not finite .*diverged"
    with pytest.raises(RuntimeError, match=message):
        fit(make_network, (x, x[:, 0]), posterior, Plain(), config)


@pytest.mark.parametrize("as_loader", [False, True])
def test_the_message_names_the_unit_of_the_targets(as_loader):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(epochs=2, batch_size=4)

    def fit_map(y, likelihood):
        data = DataLoader(TensorDataset(x, y), batch_size=4) if as_loader else (x, y)
        return fit(make_network(), data, posteriors.MAP(), Plain(), config, likelihood=likelihood)

    y = 1e5 + 100 * x[:, 0]
    message = (
        r"Try likelihood=Gaussian.fit\(targets\), which standardizes the targets \(one is (9.9\S+|1\S+)e\+0\d, and "
        r"Gaussian expects values around 0 with a standard deviation of 1\), a lower learning rate \(now 0.1\)"
    )
    with pytest.warns(DivergenceWarning, match=message):
        fit_map(y, Gaussian())
    with warnings.catch_warnings():
        warnings.simplefilter("error", DivergenceWarning)
        fit_map(y, Gaussian.fit(y))  # what is advised


def test_targets_of_the_scale_of_the_likelihood_are_no_cause():
    targets = torch.tensor([[1e5, 3.0], [1.001e5, -40.0], [0.999e5, 2.0]])
    assert suggest_standardization(Gaussian(2, location=(1e5, 0.0), scale=(100.0, 1.0)), targets) is None
    text = suggest_standardization(Gaussian(2, location=(0.0, 0.0), scale=(1.0, 1.0)), targets)
    assert text is not None
    assert "one of target 0, counted from 0, is 1e+05, and Gaussian expects values around 0" in text
    assert suggest_standardization(Categorical(2), torch.tensor([1, 0])) is None
