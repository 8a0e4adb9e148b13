"""NumPy numbers as hyperparameters are trained with, saved and loaded as plain ones are."""

import subprocess
import sys

import numpy as np
import pytest

from flatbayes import TrainingConfig
from flatbayes.training import CollectionConfig, OptimizationConfig

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


def test_whole_numbers_of_a_floating_type_are_integers():
    """YAML and searches of hyperparameters give them; a batch of 32.0 examples failed in the loader."""
    config = TrainingConfig(epochs=5.0, batch_size=np.float64(32), collection=CollectionConfig(num_norm_batches=4.0))
    assert [repr(value) for value in (config.epochs, config.batch_size, config.collection.num_norm_batches)] == [
        "5",
        "32",
        "4",
    ]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (TrainingConfig, {"epochs": 5.5}),
        (TrainingConfig, {"epochs": "5"}),
        (TrainingConfig, {"batch_size": np.float32(0.5)}),
        (OptimizationConfig, {"accumulation_steps": 1.5}),
    ],
)
def test_numbers_that_are_not_whole_are_refused_where_a_count_is_meant(make, options):
    """Half an epoch was trained without notice."""
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be a whole number, got"):
        make(**options)
