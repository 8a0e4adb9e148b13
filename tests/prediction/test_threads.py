"""Predictions of several threads, and of a process that is forked during a prediction."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from flatbayes import SWAG, DenseCategorical, Laplace, MCDropout, TrainingConfig, calibrate, evaluate, fit
from flatbayes.core.prediction_lock import lock_predictions
from flatbayes.core.spec import short_name

X, Y = torch.randn(48, 4, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
CONFIG = TrainingConfig(epochs=2).with_options(collection={"start_fraction": 0.0})


class Slow(nn.Module):
    """Gives other threads the time to interfere."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.body(x).relu())
        time.sleep(0.001)
        return self.head(hidden)


@pytest.mark.parametrize("posterior", [SWAG(rank=2, scale=50.0), Laplace("diag"), MCDropout()], ids=short_name)
def test_threads_predict_what_one_thread_does(posterior):
    fitted = fit(Slow(), (X, Y), posterior, config=CONFIG)
    sampler = calibrate(fitted, (X, Y))  # of the same networks
    expected = [fitted.predict(X, 6, seed=seed).mean for seed in range(4)]
    calibrated = sampler.predict(X, 6).mean

    def predict(seed):
        return fitted.predict(X, 6, seed=seed).mean, sampler.predict(X, 6).mean

    with ThreadPoolExecutor(4) as pool:
        for seed, (mean, other) in zip([*range(4)] * 2, pool.map(predict, [*range(4)] * 2), strict=True):
            assert torch.equal(mean, expected[seed])
            assert torch.equal(other, calibrated)


def test_threads_evaluate_positions_as_one_thread_does():
    images, masks = X.view(48, 1, 2, 2), Y.view(48, 1, 1).expand(48, 2, 2)
    network = nn.Sequential(nn.Flatten(), Slow(), nn.Unflatten(1, (3, 1, 1)), nn.Upsample(scale_factor=2))
    fitted = fit(network, (images, masks), SWAG(rank=2, scale=50.0), config=CONFIG, likelihood=DenseCategorical(3))
    expected = [
        evaluate(fitted, (images, masks), num_draws=6, seed=seed, batch_size=8).metrics["nll"] for seed in range(4)
    ]

    def measure(seed):
        return evaluate(fitted, (images, masks), num_draws=6, seed=seed, batch_size=8).metrics["nll"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(measure, range(4))) == expected


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent():
    entered, finished = threading.Event(), threading.Event()

    def hold():
        with lock_predictions():
            entered.set()
            finished.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    process = multiprocessing.get_context("fork").Process(target=_lock_once)
    process.start()
    process.join(30)
    code = process.exitcode
    finished.set()
    thread.join()
    process.kill()
    assert code == 0


def _lock_once():
    with lock_predictions():
        pass
