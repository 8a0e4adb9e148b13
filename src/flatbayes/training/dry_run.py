"""Dry run of a training: one step on a few examples, before anything is written or hours have passed."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.randomness import Stream, make_generator, preserve_rng
from flatbayes.data import DataSplits
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.compatibility import check_collection, count_snapshots
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData
from flatbayes.training.distributed.launch import get_process_layout, make_fabric
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.run_factory import make_training_loss
from flatbayes.training.setup import prepare_runs
from flatbayes.training.warm_start import PretrainedWeights

MAX_DRY_RUN_SNAPSHOTS, NUM_DRY_RUN_EXAMPLES = 5, 4


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
    """Take one step on a few examples, collect up to five snapshots, draw a network, and predict.

    The arguments are those of `fit`.

    Raises:
        ValueError: Model, data, posterior, flatness, configuration and trained weights do not go together, or the
            configuration collects too few snapshots to draw from.
    """
    factory, _ = prepare_runs(
        model, data, posterior, flatness, config, init=init, new_head=new_head, freeze=freeze, output=output
    )
    if prod(get_process_layout(config)) == 1:
        make_fabric(config)  # raises if the device does not exist
    steps_per_epoch = max(1, len(data.train) // min(config.batch_size, len(data.train)))
    check_collection(posterior, config, steps_per_epoch)
    standardize = InMemoryData(data).standardize
    inputs, targets = standardize(data.train.inputs[:NUM_DRY_RUN_EXAMPLES]), data.train.targets[:NUM_DRY_RUN_EXAMPLES]
    loss_fn = make_training_loss(factory.likelihood, config)

    with preserve_rng(None):
        make_optimizer = config.optimizer or posterior.default_optimizer
        state = posterior.init(factory.init_network(0), make_optimizer, len(data.train))
        network = state.model.train()

        def closure() -> torch.Tensor:
            network.zero_grad()
            loss = loss_fn(network(inputs), targets)
            loss.backward()
            return loss.detach()

        # With zero steps in total, whatever starts or ends later in training is active now.
        posterior.step(state, flatness(closure, network, TrainingProgress(total_steps=0)))
        for _ in range(min(MAX_DRY_RUN_SNAPSHOTS, count_snapshots(config, steps_per_epoch))):
            posterior.collect(state)
        network.eval()
        posterior.finalize(state, [(inputs, targets)], loss_fn)
        with posterior.draw(state, make_generator(Stream.DRY_RUN)) as sample, torch.no_grad():
            loss_fn(sample(inputs), targets)
