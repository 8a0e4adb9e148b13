"""Dry run of a training: one step on a few examples, before anything is written or hours have passed."""

from collections.abc import Sequence

from torch import nn

from flatbayes.core.network_interface import OutputSelector
from flatbayes.data import DataSplits
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.compatibility import check_collection
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.setup import prepare_runs
from flatbayes.training.trial import run_trial
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
    steps_per_epoch = max(1, num_data // min(config.batch_size, num_data))
    check_collection(factory.posterior, config, steps_per_epoch)
    run_trial(factory, make_fabric(config.with_options(**{"distribution.devices": 1})))
