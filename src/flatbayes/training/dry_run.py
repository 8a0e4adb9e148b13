"""Dry run of a training: one step on a few examples, before anything is written or hours have passed.

`measure_step_seconds` takes a few steps on whole batches, to estimate how long a training will take.
"""

import statistics
import time
import warnings
from typing import Any, Unpack

from torch import Tensor, nn

from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits
from flatbayes.flatness import SAM, Flatness
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.training.arguments import DataOptions, resolve_arguments
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.compatibility import check_collection
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.schedules import Constant
from flatbayes.training.trial import run_trial
from flatbayes.training.vectorization_trial import train_few_steps


def dry_run(
    model: nn.Module | ModelFactory,
    data: Any,
    posterior: Posterior = SWAG(),
    flatness: Flatness = SAM(),
    config: TrainingConfig | None = None,
    **options: Unpack[DataOptions],
) -> None:
    """Check what `fit` checks, take one step on a few examples, collect snapshots, draw a network, and predict.

    Args:
        model: As for `fit`.
        data: As for `fit`.
        posterior: As for `fit`.
        flatness: As for `fit`.
        config: As for `fit`.
        **options: `init`, `new_head`, `freeze`, `transform`, `likelihood`, `num_data`, `output`, `val` and `seed` of
            `fit`.

    Raises:
        ValueError: Model, data, posterior, flatness, configuration and trained weights do not go together, or the
            configuration collects too few snapshots to draw from.

    Examples:
        >>> dry_run(
        ...     MLP, data, SWAG(rank=2), SAM(rho=0.05), config
        ... )  # a ValueError where `fit` would refuse
    """
    factory, _ = prepare_runs(*resolve_arguments(model, data, posterior, flatness, config, options), **options)
    try_runs(factory)


def try_runs(factory: RunFactory) -> None:
    """Check the number of snapshots, and run a trial on one device, also if several train."""
    config = factory.config
    check_collection(factory.posterior, config, factory.training_data.count_batches(config))
    run_trial(factory, make_fabric(config.with_options(**{"distribution.devices": 1})))


def measure_step_seconds(
    model: nn.Module | ModelFactory,
    data: DataSplits,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    **options: Unpack[DataOptions],
) -> float:
    """Seconds of a training step of one network on a batch: the median of a few steps, without the first.

    The arguments are those of `fit`. The caller's random state does not change.

    Raises:
        ValueError, RuntimeError: The training cannot be set up, or fails.
    """
    config = config.with_options(
        epochs=1,
        schedule=Constant(),
        num_validations=0,
        validate_every_n_epochs=None,
        early_stopping=False,
        precision={"compile": False, "cuda_graph": False},
        distribution={"devices": 1, "members": "one_by_one"},
    )
    timer = StepTimer()
    with preserve_rng(None), warnings.catch_warnings(action="ignore"):  # the training itself will warn
        factory, _ = prepare_runs(model, data, posterior, flatness, config, **options)
        train_few_steps(factory, [0], timer)
    return statistics.median(end - start for start, end in zip(timer.times, timer.times[1:], strict=False))


class StepTimer(Callback):
    """Records the time at the end of every step.

    The times are seconds of a clock without a defined zero.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())
