"""Training and prediction on a CUDA device: `pytest -m gpu` on a machine that has one."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.data import Digits
from flatbayes.diagnostics import LossSurface, compute_curvature
from flatbayes.flatness import ASAM, MSAM, SAM, LookSAM, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import MAP, SGLD, SWAG, Laplace
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import Checkpoints, TrainingConfig, fit

pytestmark = pytest.mark.gpu

CONFIG = TrainingConfig(
    epochs=2,
    batch_size=100,
    optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    distribution={"accelerator": "cuda"},
    collection={"start_fraction": 0.2, "num_norm_batches": 2},
)
SAMPLER_CONFIG = CONFIG.with_options(optimizer=partial(torch.optim.SGD, lr=0.02))


@pytest.fixture(scope="module")
def data():
    return Digits(train_size=500).load(0)


def fit_digits(data, posterior=SWAG(rank=2), flatness=SAM(), config=CONFIG, **options):
    return fit(partial(ConvNet, width=8), data, posterior, flatness, config, show_progress=False, **options)


@pytest.mark.parametrize(
    "posterior", [MAP(), SWAG(rank=2), SGLD(max_snapshots=3), Laplace(prior_precision=1.0)], ids=str
)
def test_predictions_are_on_the_device_of_the_inputs(data, posterior):
    config = SAMPLER_CONFIG if isinstance(posterior, SGLD) else CONFIG
    fitted = fit_digits(data, posterior, config=config)
    assert fitted.device.type == "cuda"
    inputs, targets = data.test.inputs, data.test.targets
    on_cpu = fitted.predict(inputs, 4)
    assert on_cpu.log_probs.device.type == on_cpu.entropy.device.type == "cpu"
    accuracy = (on_cpu.top_class == targets).double().mean().item()
    assert evaluate(fitted, inputs, targets, 4).metrics["accuracy"] == accuracy
    on_gpu = fitted.predict(inputs.cuda(), 4)
    assert on_gpu.log_probs.device.type == "cuda"
    torch.testing.assert_close(on_gpu.log_probs.cpu(), on_cpu.log_probs)
    assert fitted.predict([(inputs[:50], None)], 4).log_probs.device.type == "cpu"
    assert fitted.predict(inputs.numpy(), 4).log_probs.device.type == "cpu"
    assert evaluate(fitted, inputs.cuda(), targets, 4).metrics == evaluate(fitted, inputs, targets.cuda(), 4).metrics


def test_a_fit_leaves_the_random_state_of_the_device(data):
    before = torch.cuda.get_rng_state()
    fit_digits(data).predict(data.test.inputs, 2)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("flatness", [Plain(), SAM(), ASAM(), MSAM(), LookSAM()], ids=str)
def test_no_step_waits_for_the_device(data, flatness):
    modes = []

    class Watch:
        def __getattr__(self, name):
            return lambda *_: None

        def on_step_end(self, step, loss, lr):
            modes.append(torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("error" if step < 4 else "default")

    try:
        fit_digits(data, MAP(), flatness, callback=Watch())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert max(modes) == 2


@pytest.mark.parametrize("flatness", [SAM(), MSAM()], ids=str)
def test_a_resumed_training_is_the_same(data, tmp_path, flatness):
    expected = fit_digits(data, flatness=flatness)

    class Stop:
        def __getattr__(self, name):
            return lambda *_: None

        def on_step_end(self, step, loss, lr):
            if step == 5:
                raise ArithmeticError

    checkpoints = Checkpoints(tmp_path, every_n_steps=2, min_interval_seconds=0)
    with pytest.raises(ArithmeticError):
        fit_digits(data, flatness=flatness, checkpoints=checkpoints, callback=Stop())
    resumed = fit_digits(data, flatness=flatness, checkpoints=checkpoints)
    for name, tensor in expected.states[0].model.state_dict().items():
        torch.testing.assert_close(resumed.states[0].model.state_dict()[name], tensor)


def test_statistics_of_draws_are_stored_and_used_again(data, tmp_path):
    fitted = fit(
        lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
        data,
        SWAG(rank=2),
        SAM(),
        CONFIG,
        show_progress=False,
    )
    expected = fitted.predict(data.test.inputs, 3)
    fitted.save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, fitted.states[0].model.cpu(), device="cuda")
    assert loaded.norm_statistics.keys() == fitted.norm_statistics.keys()
    torch.testing.assert_close(loaded.predict(data.test.inputs, 3).log_probs, expected.log_probs)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_is_near_full_precision(data, precision):
    fitted = fit_digits(data)
    full, mixed = (fitted.predict(data.test.inputs, 4, precision=p).mean for p in (None, precision))
    assert 0 < (full - mixed).abs().max() < 0.1


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap
def test_a_recurrent_network_in_eval_mode_has_derivatives():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model, inputs, targets = Recurrent().cuda().eval(), torch.randn(6, 5, 3).cuda(), (torch.arange(6) % 2).cuda()
    curvature = compute_curvature(LossSurface(model, F.cross_entropy, [(inputs, targets)]), 1, 2)
    assert curvature.method == "double backward"
    posterior = Laplace("diag", "sampled", prior_precision=1.0)
    state = posterior.init(model, posterior.default_optimizer, 6)
    posterior.finalize(state, [(inputs, targets)], F.cross_entropy)
    assert state.statistics["eigenvalues"].isfinite().all()
