"""Training tracker: state that flatness and posterior need in a training loop of another library."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flatbayes.core import State, TrainingProgress
from flatbayes.core.buffers import clone_buffers, find_updated_buffers
from flatbayes.core.networks import copy_network
from flatbayes.core.parameter_selection import (
    ParameterSelection,
    check_selection,
    only_requires_grad,
    select_parameters,
)
from flatbayes.core.process_group import get_process_group_info
from flatbayes.core.weights import trainable_parameters
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training.distributed.gradient_averaging import all_reduce_gradients
from flatbayes.training.loader_size import count_loader_examples
from flatbayes.training.schedules import get_automatic_snapshots_per_epoch, is_collection_step


class TrackerState(TypedDict):
    """Checkpoint of a tracker: the training progress and the statistics of the posterior."""

    progress: dict[str, Any]
    statistics: dict[str, Tensor]
    updated_buffers: NotRequired[list[str] | None]


@dataclass(frozen=True)
class TrackerConfig:
    """Which snapshots are collected, from when on, and of which parameters.

    Attributes:
        swag: The posterior whose statistics are collected; None for the trained network alone.
        start_fraction: Fraction of training after which snapshots are collected.
        snapshots_per_epoch: Snapshots collected per epoch from then on; None is one, or in a short training as many
            as give ten in total.
        params: The trainable parameters that the posterior is over; the others keep their trained values.
        num_data: Number of training examples; None counts those of a pass over the data loader, from its sampler.

    Raises:
        ValueError: A value is out of range, or `swag` has a prior precision.
    """

    swag: SWAG | None
    start_fraction: float
    snapshots_per_epoch: int | None
    params: ParameterSelection
    num_data: int | None

    def __post_init__(self) -> None:
        if self.swag is not None and self.swag.prior_precision is not None:
            raise ValueError(
                f"The optimizer of this loop does not apply prior_precision={self.swag.prior_precision}: give it a "
                "weight_decay of the precision divided by the number of training examples instead."
            )
        if not 0 <= self.start_fraction < 1:
            raise ValueError(
                f"start_fraction is a fraction of training, at least 0 and below 1; got {self.start_fraction}."
            )
        if self.snapshots_per_epoch is not None and self.snapshots_per_epoch < 1:
            raise ValueError(f"snapshots_per_epoch must be at least 1, got {self.snapshots_per_epoch}.")
        check_selection(self.params, "params")

    @property
    def posterior(self) -> SWAG | MAP:
        """The posterior: `MAP()`, all mass on the trained network, where no snapshots are collected."""
        return MAP() if self.swag is None else self.swag

    def count_examples(self, loader: object, num_batches: int | None = None) -> int:
        """Number of training examples: `num_data`, or those of a pass over the loader; 1 where no posterior uses it.

        Args:
            loader: The training data loader, which is not read.
            num_batches: Number of its batches that an epoch has in each process, if that may be fewer than all.

        Raises:
            ValueError: There is no `num_data`, and the loader does not tell the number.
        """
        if self.num_data is not None or self.swag is None:
            return self.num_data or 1
        count = count_loader_examples(loader, get_process_group_info().size, num_batches)
        if count is None:
            raise ValueError(
                f"The number of training examples of a {type(loader).__name__} is unknown before it is read: pass "
                "num_data, the number of labelled examples in an epoch."
            )
        return count


@dataclass
class TrainingTracker:
    """A running training: its progress and the statistics of the posterior.

    Attributes:
        config: Which snapshots are collected, and when.
        state: The network that is trained, and the statistics of the posterior.
        progress: Number of steps so far, and the state of the flatness.
        steps_per_epoch: Optimizer steps in an epoch.
        epoch_buffers: Buffers of the network at the start of the epoch.
    """

    config: TrackerConfig
    state: State
    progress: TrainingProgress
    steps_per_epoch: int
    epoch_buffers: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def start_tracking(
        config: TrackerConfig,
        network: nn.Module,
        progress: TrainingProgress,
        steps_per_epoch: int | None,
        num_data: int,
    ) -> "TrainingTracker":
        """A tracker with empty statistics.

        Args:
            config: Which snapshots are collected, and when.
            network: The network, on its training device.
            progress: Number of steps so far and in all.
            steps_per_epoch: Optimizer steps in an epoch; None if training has no epochs.
            num_data: Number of training examples.

        Raises:
            ValueError: The network has no such parameters, or SWAG is collected and the number of steps is unknown.
        """
        if config.swag is not None and progress.total_steps is None:
            raise ValueError("SWAG collects late in training, and the number of steps is unknown: set max_steps.")
        with only_requires_grad(network, select_parameters(network, config.params, "params")):
            state = config.posterior.init(network, None, num_data)
        steps_per_epoch = steps_per_epoch or progress.total_steps or 1
        return TrainingTracker(config, state, progress, steps_per_epoch, clone_buffers(network))

    def advance(self) -> None:
        """Count an optimizer step, and collect a snapshot if one is due."""
        swag, step = self.config.swag, self.progress.step
        self.progress.advance()
        if self.progress.step % self.steps_per_epoch == 0:
            self.state.updated_buffers = find_updated_buffers(self.state.model, self.epoch_buffers)
            self.epoch_buffers = clone_buffers(self.state.model)
        if swag is not None and self._is_collection_step(step):
            with only_requires_grad(self.state.model, self._posterior_params()):
                swag.collect(self.state)

    def check_collection(self) -> None:
        """Check before the first step that the steps ahead collect enough snapshots to draw from.

        Raises:
            ValueError: They collect fewer.
        """
        swag, progress, config = self.config.swag, self.progress, self.config
        if swag is None or progress.total_steps is None:
            return
        required, num_collected = swag.snapshot_requirements[0], int(self.state.statistics["count"])
        # From the last step backwards, where the snapshots are: trainings of transformers have millions of steps.
        steps_ahead = range(progress.total_steps - 1, progress.step - 1, -1)
        num_ahead = sum(1 for _ in islice(filter(self._is_collection_step, steps_ahead), required))
        if steps_ahead and num_collected + num_ahead < required:
            raise ValueError(
                f"{type(swag).__name__} needs at least {required} snapshots of the weights, and this training of "
                f"{progress.total_steps} steps collects {num_collected + num_ahead}. Lower start_fraction (now "
                f"{config.start_fraction:g}), raise snapshots_per_epoch (now "
                f"{config.snapshots_per_epoch or 'automatic'}), or train longer."
            )

    def state_dict(self) -> TrackerState:
        """What a checkpoint needs beside model and optimizer to resume training bit for bit."""
        state = self.state.state_dict()
        return {
            "progress": self.progress.state_dict(),
            "statistics": state["statistics"],
            "updated_buffers": state["updated_buffers"],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from a checkpoint; the number of steps in all may differ from then.

        Args:
            state_dict: Made by `state_dict`; version 0.1 wrote `course` for `progress`.

        Raises:
            ValueError: The statistics do not belong to this posterior over these parameters.
        """
        total_steps = self.progress.total_steps
        self.progress.load_state_dict(state_dict["progress" if "progress" in state_dict else "course"])
        self.progress.total_steps = total_steps
        weights = self.state.model.state_dict()
        self.state.load_state_dict({**state_dict, "model": weights, "optimizer": None})

    def make_posterior(
        self,
        likelihood: Likelihood,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        statistics_inputs: Sequence[Tensor] = (),
        info: Mapping[str, Any] | None = None,
    ) -> FittedPosterior:
        """The posterior at this step, independent of later training.

        Parameters that are not trained are shared with the network; the others are copied.

        Args:
            likelihood: Turns outputs into predictions.
            wrap: Makes a network that takes one tensor and returns outputs; None for a network that does so itself.
            transform: Applied to inputs before the network.
            statistics_inputs: Batches of training inputs, to re-estimate BatchNorm statistics of draws.
            info: Plain data saved with the artefact.

        Raises:
            RuntimeError: Too few snapshots have been collected.
        """
        if self.config.swag is not None:
            required, count = self.config.swag.snapshot_requirements[0], int(self.state.statistics["count"])
            if count < required:
                raise RuntimeError(
                    f"{type(self.config.swag).__name__} needs at least {required} snapshots of the weights, and has "
                    f"collected {count} in {self.progress.step} of {self.progress.total_steps} steps. Train longer, "
                    "or lower start_fraction."
                )
        network, posterior_params = self.state.model, self._posterior_params()
        shared = {id(param): param for param in network.parameters() if not param.requires_grad}
        network_copy = copy_network(
            network,
            dict[int, Any](shared),
            advice="The posterior is a copy of the network. Remove the attribute first.",
        )
        for name, param in network_copy.named_parameters():
            if id(param) not in shared:
                param.requires_grad_(name in posterior_params)
                param.grad = None
        model = (network_copy if wrap is None else wrap(network_copy)).eval()
        statistics = {name: tensor.clone() for name, tensor in self.state.statistics.items()}
        updated_buffers = self.state.updated_buffers
        if updated_buffers is None:  # in the first epoch
            updated_buffers = find_updated_buffers(network, self.epoch_buffers)
        wrapped_names = {id(buffer): name for name, buffer in model.named_buffers()}
        copies = dict(network_copy.named_buffers())
        names = {wrapped_names[id(copies[name])] for name in updated_buffers if id(copies[name]) in wrapped_names}
        state = State(model, None, self.state.num_data, statistics, self.state.cpu_statistics, frozenset(names))
        return FittedPosterior(
            self.config.posterior, [state], likelihood, transform, list(statistics_inputs), dict(info or {})
        )

    def _is_collection_step(self, step: int) -> bool:
        config, total_steps = self.config, self.progress.total_steps
        if not total_steps:
            return False
        num_epochs, start = total_steps / self.steps_per_epoch, config.start_fraction
        per_epoch = config.snapshots_per_epoch or get_automatic_snapshots_per_epoch(num_epochs, start)
        return is_collection_step(step, self.steps_per_epoch, total_steps, start, per_epoch)

    def _posterior_params(self) -> dict[str, nn.Parameter]:
        return select_parameters(self.state.model, self.config.params, "params")


def copy_batch(batch: Any) -> Any:
    """A copy of a batch, for a training step that takes its batch apart or changes it in place.

    A batch that cannot be copied, such as an object with a lock, is returned itself.
    """
    try:
        return copy.deepcopy(batch)
    except Exception:  # whatever the user's classes raise
        return batch


def is_single_pass(batch: Any) -> bool:
    """Whether a batch, or an entry of it, is an iterator, which a second gradient would find exhausted."""
    return any(isinstance(leaf, Iterator) for leaf in tree_leaves(batch))


def count_optimizer_steps(num_batches: int, accumulation_steps: int) -> int:
    """Optimizer steps in an epoch, of which the last may have fewer micro-batches."""
    return -(-num_batches // accumulation_steps)


def synchronize_gradients(model: nn.Module) -> None:
    """Average gradients over the processes, and broadcast the buffers of the first one.

    The flatness of each process perturbs the weights by the gradient of its own part of the batch, without
    communication; only the final gradient is averaged, so a step costs the traffic of ordinary training. A missing
    gradient counts as zero; a parameter without a gradient in any process keeps none. Buffers are those that
    DistributedDataParallel broadcasts when gradients are synchronised.
    """
    process_group, params = get_process_group_info(), trainable_parameters(model)
    if process_group.size > 1 and params:
        all_reduce_gradients(torch.zeros((), device=params[0].device), params, 1)
    process_group.broadcast_tensors(list(model.buffers()))
