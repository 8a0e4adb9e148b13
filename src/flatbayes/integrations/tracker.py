"""Training tracker: drives a posterior in the training loop of another library, as `fit` drives it in its own."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from flatbayes.core import TrainingProgress
from flatbayes.core.buffers import clone_buffers, find_updated_buffers
from flatbayes.core.context import offer_distribution
from flatbayes.core.names import format_count
from flatbayes.core.parameter_selection import only_requires_grad, select_parameters
from flatbayes.core.traversal import trainable_by_name
from flatbayes.integrations.posterior_steps import PosteriorSteps
from flatbayes.integrations.tracker_config import TrackerConfig, TrackerState
from flatbayes.posteriors.parameter_guard import refuse_changes
from flatbayes.training.compatibility import check_snapshot_count
from flatbayes.training.identity import describe_name
from flatbayes.training.loader_checks import warn_of_weights
from flatbayes.training.schedules import get_automatic_snapshots_per_epoch, is_collection_step
from flatbayes.training.trial import find_low_precisions, warn_of_low_precision


@dataclass
class TrainingTracker:
    """A running training: its progress, and the posterior that takes its steps.

    Attributes:
        config: Which snapshots are collected, and when.
        steps: The posterior with its state, whose network is the one that is trained.
        progress: Number of steps so far, and the state of the flatness.
        steps_per_epoch: Optimizer steps in an epoch.
        loader: The training data loader.
        epoch_buffers: Buffers of the network at the start of the epoch.
        has_ended: Whether training has ended.
        params: The parameters that the posterior is over, by name.
        went_back: Whether the state is that of an earlier checkpoint, such as the best one.
        final_norms: Norms of these parameters at the end of training.
    """

    config: TrackerConfig
    steps: PosteriorSteps
    progress: TrainingProgress
    steps_per_epoch: int
    loader: Any = field(default=None, repr=False)
    epoch_buffers: dict[str, Tensor] = field(default_factory=dict, repr=False)
    has_ended: bool = False
    params: dict[str, nn.Parameter] = field(default_factory=dict, repr=False)
    went_back: bool = False
    final_norms: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def start_tracking(
        config: TrackerConfig,
        network: nn.Module,
        optimizer: Optimizer,
        progress: TrainingProgress,
        steps_per_epoch: int | None,
        num_data: int,
        loader: Any = None,
        *,
        mixed_precision: str = "autocast to bfloat16",
    ) -> "TrainingTracker":
        """A tracker with empty statistics.

        `steps_per_epoch` is None if training has no epochs. The loader is for what is computed on training examples
        after training. `mixed_precision` is an option of the loop, which a warning of trained weights in bfloat16 or
        float16 names.

        Raises:
            ValueError: The posterior does not go with the network or the optimizer, or snapshots are collected and
                the number of steps is unknown.
        """
        if config.posterior.snapshot_requirements.max_used and progress.total_steps is None:
            raise ValueError(
                f"{type(config.posterior).__name__} collects snapshots late in training, and the number of steps is "
                "unknown: set max_steps."
            )
        warn_of_weights(loader, stacklevel=3)
        low_precisions = find_low_precisions(network)
        if low_precisions:
            warn_of_low_precision(low_precisions, mixed_precision)
        params = select_parameters(network, config.params, "params")
        with only_requires_grad(network, params):
            steps = PosteriorSteps.init(config.posterior, network, optimizer, num_data)
        steps_per_epoch = steps_per_epoch or progress.total_steps or 1
        buffers = clone_buffers(network)
        return TrainingTracker(config, steps, progress, steps_per_epoch, loader, buffers, params=params)

    def offer_distribution(self) -> AbstractContextManager[None]:
        """Context for gradients that are computed before the step, in which the weights have their distribution."""
        return offer_distribution(self.config.posterior.make_weight_distribution(self.steps.state))

    def check_parameters(self) -> None:
        """Check before a step that the parameters that the posterior is over are those of the start.

        Raises:
            ValueError: A callback has frozen, unfrozen or replaced some, and the posterior has statistics of each.
        """
        state, config = self.steps.state, self.config
        if state.statistics:
            current = trainable_by_name(state.model) if config.params == "all" else self.select_posterior_params()
            refuse_changes(self.params, current, type(config.posterior).__name__)

    def advance(self) -> None:
        """Count an optimizer step, and collect a snapshot if one is due."""
        state, step = self.steps.state, self.progress.step
        self.progress.advance()
        if self.progress.step % self.steps_per_epoch == 0:
            state.updated_buffers = find_updated_buffers(state.model, self.epoch_buffers)
            self.epoch_buffers = clone_buffers(state.model)
        if self.config.posterior.snapshot_requirements.max_used and self._is_collection_step(step):
            with only_requires_grad(state.model, self.select_posterior_params()):
                self.config.posterior.collect(state)

    def check_collection(self) -> None:
        """Check before the first step that the steps ahead collect enough snapshots to draw from.

        A warning says if they are fewer than half of those that the posterior can use.
        """
        posterior, progress, collection = self.config.posterior, self.progress, self.config.collection
        useful = posterior.snapshot_requirements.max_used
        if useful == 0 or progress.total_steps is None or progress.step >= progress.total_steps:
            return
        # From the last step backwards, where the snapshots are: trainings of transformers have millions of steps.
        steps_ahead = range(progress.total_steps - 1, progress.step - 1, -1)
        num_ahead = sum(1 for _ in islice(filter(self._is_collection_step, steps_ahead), useful))
        message = check_snapshot_count(
            posterior,
            self.count_snapshots() + num_ahead,
            f"training of {format_count(progress.total_steps, 'step')}",
            f"Lower start_fraction (now {collection.start_fraction:g}), raise snapshots_per_epoch (now "
            f"{collection.snapshots_per_epoch or 'automatic'}), or train longer.",
        )
        if message is not None:
            warnings.warn(message, stacklevel=2)

    def finish_training(self) -> None:
        """Restore the layers of the network, and warn if training ended too early to draw from the posterior."""
        self.stop_training()
        if self.lacks_snapshots() and self.stopped_early():
            advice = "load_best_model_at_end" if self.went_back else "early stopping"
            warnings.warn(
                f"{self.explain_missing_snapshots()} The posterior that can be made is MAP, the trained network "
                f"alone. Lower start_fraction, or train without {advice}.",
                stacklevel=2,
            )

    def stop_training(self) -> None:
        """Restore the layers of the network; training goes on with a new tracker only."""
        self.steps.restore_layers()
        self.has_ended = True
        self.final_norms = self._measure_norms()

    def go_back(self, state_dict: Mapping[str, Any]) -> None:
        """Take the state of an earlier checkpoint, whose weights the network has got already.

        Raises:
            ValueError: The statistics do not belong to this posterior over these parameters.
        """
        last_step = self.progress.step
        self.load_state_dict(state_dict)
        self.went_back = self.progress.step != last_step
        self.final_norms = self._measure_norms()

    def has_other_weights(self) -> bool:
        """Whether the weights have been changed since the end of training, where the posterior has statistics."""
        if self.final_norms is None or not self.steps.state.statistics:
            return False
        return not torch.allclose(self._measure_norms(), self.final_norms, rtol=1e-5, atol=0.0, equal_nan=True)

    def _measure_norms(self) -> Tensor:
        # Changes in place that are undone, such as perturbations, leave them as they are.
        norms = [torch.linalg.vector_norm(param.detach().flatten()) for param in self.params.values()]
        return torch.stack([norm.float().cpu() for norm in norms]) if norms else torch.zeros(0)

    def count_snapshots(self) -> int:
        """Number of snapshots collected so far."""
        count = self.steps.state.statistics.get("count")
        return 0 if count is None else int(count)

    def lacks_snapshots(self) -> bool:
        """Whether fewer snapshots have been collected than a draw needs."""
        return self.count_snapshots() < self.config.posterior.snapshot_requirements.min_count

    def stopped_early(self) -> bool:
        """Whether training has ended between its first step and its last."""
        return self.has_ended and 0 < self.progress.step < (self.progress.total_steps or 0)

    def explain_missing_snapshots(self) -> str:
        """One sentence on how many snapshots there are and how many a draw needs."""
        return (
            f"{describe_name(self.config.posterior)} needs at least "
            f"{format_count(self.config.posterior.snapshot_requirements.min_count, 'collected snapshot')} of the "
            f"weights, and has collected {self.count_snapshots()} by step {self.progress.step} of "
            f"{self.progress.total_steps}{', that of the checkpoint' if self.went_back else ''}."
        )

    def state_dict(self) -> TrackerState:
        """What a checkpoint needs beside model and optimizer to resume training bit for bit."""
        state = self.steps.state
        optimizer_states = {
            f"{index}.{name}": value
            for index, scale in enumerate(self.steps.scales)
            for name, value in self.steps.scale_states.get(scale, {}).items()
            if isinstance(value, Tensor)
        }
        return {
            "progress": self.progress.state_dict(),
            "statistics": {name: tensor.detach() for name, tensor in state.statistics.items()},
            "updated_buffers": None if state.updated_buffers is None else sorted(state.updated_buffers),
            "optimizer_states": optimizer_states,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from a checkpoint; the number of steps in all may differ from then.

        Version 0.1 wrote `course` for `progress`.

        Raises:
            ValueError: The statistics do not belong to this posterior over these parameters.
        """
        total_steps, state = self.progress.total_steps, self.steps.state
        self.progress.load_state_dict(state_dict["progress" if "progress" in state_dict else "course"])
        self.progress.total_steps = total_steps
        weights = state.model.state_dict()
        state.load_state_dict({**state_dict, "model": weights, "optimizer": None})
        self.steps.scale_states = {scale: {} for scale in self.steps.scales}
        for key, value in state_dict.get("optimizer_states", {}).items():
            index, _, name = key.partition(".")
            scale = self.steps.scales[int(index)]
            on_device = value.to(scale.device) if value.shape == scale.shape else value
            self.steps.scale_states[scale][name] = on_device

    def select_posterior_params(self) -> dict[str, nn.Parameter]:
        """The parameters that the posterior is over, by name."""
        return select_parameters(self.steps.state.model, self.config.params, "params")

    def _is_collection_step(self, step: int) -> bool:
        collection, total_steps = self.config.collection, self.progress.total_steps
        if not total_steps:
            return False
        start = collection.start_fraction
        automatic = get_automatic_snapshots_per_epoch(total_steps / self.steps_per_epoch, start)
        per_epoch = collection.snapshots_per_epoch or automatic
        return is_collection_step(step, self.steps_per_epoch, total_steps, start, per_epoch, self.config.num_cycles)


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
