"""A training run: its components, which do not change, and its status, which does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from flatbayes.core import LossFn, State, TrainingProgress
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.callbacks.callback import Record
from flatbayes.training.config import TrainingConfig
from flatbayes.training.early_stopping import BestWeights, shorten, truncate


@dataclass
class RunStatus:
    """How far a training run has come.

    Attributes:
        progress: Step counter, and the state of the flatness.
        completed_epochs: Number of epochs done.
        loss_sum: Sum of the losses of the current epoch.
        num_gradients: Forward and backward passes of a network; a pass over a fraction of the batch counts as that
            fraction.
        records: One record per epoch and network.
        is_trained: Whether training has ended.
        is_sharded: Whether this process holds only a shard of the state of the posterior that takes the steps.
        previous_seconds: Duration of the run before it was interrupted.
        best: Weights of the best evaluation; None without early stopping.
        best_epoch: Epoch to which early stopping has gone back; None if it has not.
        last_epoch: Epoch with which early stopping has ended a training without going back; None if it has not.
        shortened: The hyperparameters since then.
    """

    progress: TrainingProgress = field(default_factory=TrainingProgress)
    completed_epochs: int = 0
    loss_sum: Tensor | float = 0.0
    num_gradients: float = 0
    records: list[Record] = field(default_factory=list)
    is_trained: bool = False
    is_sharded: bool = False
    previous_seconds: float = 0.0
    best: BestWeights | None = None
    best_epoch: int | None = None
    last_epoch: int | None = None
    shortened: TrainingConfig | None = None
    _start_time: float = field(default_factory=time.monotonic)

    @property
    def is_stopped_early(self) -> bool:
        """Whether early stopping has shortened the training."""
        return self.best_epoch is not None or self.last_epoch is not None

    def elapsed_seconds(self) -> float:
        """Duration of the run in seconds, without the time between an interruption and its continuation."""
        return self.previous_seconds + time.monotonic() - self._start_time


@dataclass
class Branch:
    """A posterior that a training run serves, with its own snapshots and its own last pass over the data.

    Attributes:
        name: Distinguishes the branches of a run, also in its checkpoints.
        posterior: Collects the snapshots.
        config: Training hyperparameters; its `collection` says after which steps they are collected.
        init_state: Makes the posterior's state before the first step from the module.
        split_state: Splits the state into one state per network.
        state: The state; None before training.
        seconds: Time that this posterior alone has taken: its snapshots, and its last pass over the data.
        error: Why this posterior failed; the run continues for the others.
        shortened: The hyperparameters after early stopping has shortened the training; None before.
    """

    name: str
    posterior: Posterior
    config: TrainingConfig
    init_state: Callable[[nn.Module], State]
    split_state: Callable[[State], list[State]] = lambda state: [state]
    state: State | None = None
    seconds: float = 0.0
    error: Exception | None = None
    shortened: TrainingConfig | None = None

    def follow(self, leader: State) -> None:
        """Make the state, with the network and the optimizer of the posterior that takes the steps."""
        with self.isolate():
            self.state = self.init_state(leader.model)
            if self.state.model is not leader.model:
                raise ValueError(f"{type(self.posterior).__name__} changes the model, so its training is not shared.")
            self.state.optimizer = leader.optimizer
            trajectory = self.posterior.trajectory
            for name in trajectory.statistics if trajectory else ():
                self.state.statistics[name] = leader.statistics[name]

    def collect(self, step: int, steps_per_epoch: int, best_epoch: int | None = None) -> None:
        """Record the current weights if the configuration says so after this step, counted from 0."""
        if best_epoch is not None and self.shortened is None:
            self.shortened = shorten(self.config, best_epoch, steps_per_epoch)
        config = self.config if best_epoch is None or self.shortened is None else self.shortened
        if self.error is None and config.is_collection_step(step, steps_per_epoch):
            with self.isolate():
                self.posterior.collect(self.get_state())

    def get_state(self) -> State:
        """The state.

        Raises:
            RuntimeError: Training has not started.
        """
        if self.state is None:
            raise RuntimeError("The training has not started, so there is no state.")
        return self.state

    @contextmanager
    def isolate(self) -> Iterator[None]:
        """Context in which an error fails this branch alone, and whose duration is its own."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self.error = error
        finally:
            self.seconds += time.monotonic() - started

    @property
    def states(self) -> list[State]:
        """Current state of each network; empty before training has started."""
        return [] if self.state is None else self.split_state(self.state)


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A training run of one network, or of several vectorized ones.

    Attributes:
        module: Network to train, or several vectorized ones.
        branches: The posteriors that the run serves, all of one trajectory. The first takes the steps.
        flatness: Computes the gradients.
        loss_fn: Training loss; with vectorized networks, one value per network.
        batches: Training data.
        config: Training hyperparameters.
        seed: Seed of dropout and of the posterior's noise.
        validate: Evaluates every network of the module between epochs.
        find_labelled: Which examples of a batch, or positions of these, have a target, from its targets; None if all.
        loss_is_nll: Whether the loss is known to be a negative log likelihood in nats; those of users may have units.
        num_networks: Number of networks in the module.
        status: What changes during training.
        record_snapshot: Called after every step with a snapshot, with the step and the first branch's state.
        suggest_data_change: What to change in the data of a training that diverged; None for nothing.
    """

    module: nn.Module
    branches: Sequence[Branch]
    flatness: Flatness
    loss_fn: LossFn
    batches: TrainingBatches
    config: TrainingConfig
    seed: int
    validate: Callable[[nn.Module], Sequence[Mapping[str, float]]] | None = None
    find_labelled: Callable[[Tensor], Tensor | None] = lambda targets: None
    loss_is_nll: bool = True
    num_networks: int = 1
    status: RunStatus = field(default_factory=RunStatus)
    record_snapshot: Callable[[int, State], None] | None = None
    suggest_data_change: Callable[[], str | None] = lambda: None

    @property
    def current_config(self) -> TrainingConfig:
        """The hyperparameters, as early stopping has shortened the training."""
        status = self.status
        if status.shortened is None and status.best_epoch is not None:
            status.shortened = shorten(self.config, status.best_epoch, len(self.batches))
        if status.shortened is None and status.last_epoch is not None:
            status.shortened = truncate(self.config, status.last_epoch)
        return status.shortened or self.config

    @property
    def total_steps(self) -> int:
        """Number of steps of the training, as early stopping has shortened it."""
        return self.current_config.num_epochs * len(self.batches)

    @property
    def leader(self) -> Branch:
        """The branch whose posterior takes the steps."""
        return self.branches[0]

    @property
    def followers(self) -> list[Branch]:
        """The other branches that have not failed."""
        return [branch for branch in self.branches[1:] if branch.error is None]

    @property
    def states(self) -> list[State]:
        """Current state of each network of the first branch; empty before training, and while it is sharded."""
        return [] if self.status.is_sharded else self.leader.states

    def collect(self, step: int) -> None:
        """Let every posterior record the current weights if its configuration says so after this step.

        Raises:
            Exception: That of the first branch, once all have failed.
        """
        for branch in self.branches:
            branch.collect(step, len(self.batches), self.status.best_epoch)
        if self.record_snapshot is not None and self.current_config.is_collection_step(step, len(self.batches)):
            self.record_snapshot(step, self.leader.get_state())
        self.check_branches()

    def check_branches(self) -> None:
        """Raise the error of the first branch if all have failed."""
        if self.leader.error is not None and all(branch.error for branch in self.branches):
            raise self.leader.error
