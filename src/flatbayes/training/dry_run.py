"""Find out in a second whether a training can end well, before anything is written or hours have passed."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.collection import check_collection, count_snapshots
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData
from flatbayes.training.distributed.launch import get_process_layout, make_fabric
from flatbayes.training.loss import make_training_loss
from flatbayes.training.model_builder import ModelFactory, make_model_builder
from flatbayes.training.warm_start import PretrainedWeights, WarmStart, check_epochs

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
) -> None:
    """Take one step on a few examples, collect as many snapshots as the recipe will (up to a few), draw, predict.

    Arguments are as for `fit`.

    Raises:
        ValueError: Model, data, posterior, flatness, recipe and trained weights do not go together; or the recipe
            collects too few snapshots to draw from.
    """
    check_epochs(config, has_init=init is not None or isinstance(model, nn.Module))
    check_compatibility(posterior, flatness, config)
    if prod(get_process_layout(config)) == 1:
        make_fabric(config)  # says so if there is no such device
    steps = max(1, len(data.train) // min(config.batch_size, len(data.train)))
    check_collection(posterior, config, steps)
    source = InMemoryData(data)
    inputs, targets = (
        source.standardize(data.train.inputs[:NUM_DRY_RUN_EXAMPLES]),
        data.train.targets[:NUM_DRY_RUN_EXAMPLES],
    )
    loss_of = make_training_loss(source.infer_likelihood(), config)
    with preserve_rng(None):
        build = make_model_builder(model, source.model_arguments)
        start = WarmStart.from_init(init, build, posterior, new_head=new_head, freeze=freeze)
        module = start.apply_to(build(), 0)
        state = posterior.init(module, config.optimizer or posterior.default_optimizer, len(data.train))
        network = state.model.train()

        def loss_fn(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
            if not isinstance(outputs, torch.Tensor):
                raise ValueError(f"The model must return a tensor of logits, got a {type(outputs).__name__}.")
            return loss_of(outputs, targets)

        def closure() -> torch.Tensor:
            network.zero_grad()
            loss = loss_fn(network(inputs), targets)
            loss.backward()
            return loss.detach()

        at_once = TrainingProgress(total_steps=0)  # begins and ends here: whatever takes turns has its turn
        posterior.step(state, flatness(closure, network, at_once))
        for _ in range(min(MAX_DRY_RUN_SNAPSHOTS, count_snapshots(config, steps))):
            posterior.collect(state)
        network.eval()
        posterior.finalize(state, [(inputs, targets)], loss_fn)
        with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn, torch.no_grad():
            loss_fn(drawn(inputs), targets)
