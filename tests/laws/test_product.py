"""Every pair of posterior and flatness fits, predicts, saves, loads and predicts the same, or is refused."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.likelihoods import Categorical
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig, fit
from support import FLATNESSES, POSTERIORS, explain_refusal, network, pair_params

CONFIG = TrainingConfig(
    epochs=2,
    batch_size=8,
    collection=CollectionConfig(start_fraction=0.0),
    optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
)


@pytest.mark.parametrize(("posterior", "flat"), pair_params(POSTERIORS, FLATNESSES))
def test_fits_predicts_saves_loads(posterior, flat, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    reason = explain_refusal(posterior, flat, CONFIG)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            fit(network, loader, posterior, flat, CONFIG, likelihood=Categorical(3))
        return
    fitted = fit(network, loader, posterior, flat, CONFIG, likelihood=Categorical(3))
    calls = posterior.num_members * posterior.gradients_per_step
    assert fitted.info["cost"]["gradients"] / calls == pytest.approx(
        6 * flat.gradients_per_step, abs=1
    )  # turns are whole
    predictive = fitted.predict(x, 3)
    torch.testing.assert_close(predictive.mean.sum(-1), torch.ones(24, dtype=torch.float64))
    assert predictive.entropy.isfinite().all()
    fitted.save(tmp_path)
    assert torch.equal(FittedPosterior.load(tmp_path, network).predict(x, 3).log_probs, predictive.log_probs)
