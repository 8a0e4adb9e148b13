"""NumPy numbers as hyperparameters are trained with, saved and loaded as plain ones are."""

import subprocess
import sys

PROGRAM = """
import sys
from functools import partial

import numpy as np

from flatbayes import SAM, SWAG, Ensemble, FittedPosterior, TrainingConfig, fit
from flatbayes.models import MLP
from flatbayes.training import CollectionConfig, OptimizationConfig

x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
y = (x[:, 0] > 0).astype(int)


def train(integer, fraction, hidden, folder):
    config = TrainingConfig(
        epochs=integer(2),
        batch_size=integer(16),
        num_validations=integer(0),
        optimization=OptimizationConfig(accumulation_steps=integer(2), clip_norm=fraction(0.5)),
        collection=CollectionConfig(start_fraction=fraction(0.25), num_norm_batches=integer(1)),
    )
    posterior = Ensemble(SWAG(rank=integer(2)), size=integer(2))
    fitted = fit(partial(MLP, hidden=hidden), (x, y), posterior, SAM(fraction(0.5)), config, seed=integer(3))
    fitted.save(folder)
    return FittedPosterior.load(folder).predict(x, integer(4), seed=integer(1)).mean


plain = train(int, float, (8,), sys.argv[1])
assert (train(np.int64, np.float32, (np.int64(8),), sys.argv[2]) == plain).all()
assert (train(np.int32, np.float64, np.array([8]), sys.argv[3]) == plain).all()
"""


def test_numpy_numbers_are_as_good_as_plain_ones(tmp_path):
    folders = [str(tmp_path / name) for name in "abc"]
    program = [sys.executable, "-c", PROGRAM, *folders]  # without the checks of types that the tests add
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
