"""Dry run of a training: one step on a few examples, before anything is written or hours have passed.

`measure_step_seconds` takes a few steps on whole batches, to estimate how long a training will take.
"""

import statistics
import time
import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.compatibility import check_collection
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.schedules import Constant
from flatbayes.training.setup import prepare_runs
from flatbayes.training.trial import run_trial
from flatbayes.training.vectorization_trial import train_few_steps
from flatbayes.training.warm_start import PretrainedWeights


def dry_run(
    model: nn.Module | ModelFactory,
    data: DataSplits,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    *,
    init: PretrainedWeights | Sequence[PretrainedWeights] | None = None,
    new_head: bool = False,
    freeze: Sequence[str] = (),
    output: OutputSelector | None = None,
) -> None:
    """Check what `fit` checks, take one step on a few examples, collect snapshots, draw a network, and predict.

    The arguments are those of `fit`.

    Raises:
        ValueError: Model, data, posterior, flatness, configuration and trained weights do not go together, or the
            configuration collects too few snapshots to draw from.

    Examples:
        >>> dry_run(
        ...     MLP, data, SWAG(rank=2), SAM(rho=0.05), config
        ... )  # a ValueError where `fit` would refuse
    """
    factory, _ = prepare_runs(
        model, data, posterior, flatness, config, init=init, new_head=new_head, freeze=freeze, output=output
    )
    try_runs(factory, len(data.train))


def try_runs(factory: RunFactory, num_data: int) -> None:
    """Check the number of snapshots, and run a trial on one device, also if several train.

    Args:
        factory: Makes the training runs.
        num_data: Number of training examples.

    Raises:
        ValueError: As for `dry_run`.
    """
    config = factory.config
    check_collection(factory.posterior, config, factory.training_data.count_batches(config))
    run_trial(factory, make_fabric(config.with_options(**{"distribution.devices": 1})))


def measure_step_seconds(
    model: nn.Module | ModelFactory,
    data: DataSplits,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
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
        factory, _ = prepare_runs(model, data, posterior, flatness, config)
        train_few_steps(factory, [0], timer)
    return statistics.median(end - start for start, end in zip(timer.times, timer.times[1:], strict=False))


class StepTimer(Callback):
    """Records the time at the end of every step.

    Attributes:
        times: Seconds, of a clock without a defined zero.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())
