"""Recording of a training, from which further posteriors of the same trajectory are fitted without its steps.

The tensors of the network are copied after every step with a snapshot, of which the last step is one. A replay puts
each copy into the network, and lets the posteriors record it.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from flatbayes.core import State
from flatbayes.core.buffers import set_training_mode
from flatbayes.core.networks import load_tensors, named_tensors
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.compatibility import count_snapshots
from flatbayes.training.early_stopping import BestWeights
from flatbayes.training.loop import train
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import Session

Tensors = dict[str, Tensor]
"""Parameters and buffers of a network by name, in main memory."""


@dataclass
class Recording:
    """What posteriors need of a training of one network, or of several vectorized ones; in main memory.

    Attributes:
        snapshots: Tensors of the network after each step with a snapshot, with the step, counted from 0.
        is_complete: Whether the training has ended, and was recorded from its start.
        statistics: Statistics that the steps changed.
        updated_buffers: Buffers that the last epoch changed.
        records: Records of all epochs.
        num_gradients: Forward and backward passes of a network.
        seconds: Duration of the steps.
        best: Weights of the best evaluation; None without early stopping.
        best_epoch: Epoch after which early stopping has shortened the training; None if it has not.
    """

    snapshots: list[tuple[int, Tensors]] = field(default_factory=list)
    is_complete: bool = False
    statistics: Tensors = field(default_factory=dict)
    updated_buffers: frozenset[str] | None = None
    records: list[Record] = field(default_factory=list)
    num_gradients: float = 0
    seconds: float = 0.0
    best: BestWeights | None = None
    best_epoch: int | None = None

    def add_snapshot(self, step: int, state: State) -> None:
        """Record the network after a step."""
        tensors = named_tensors(state.model)
        self.snapshots.append((step, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}))

    def finish(self, run: TrainingRun, seconds: float) -> None:
        """Record the end of a run, unless it has continued from a checkpoint, before which nothing was recorded."""
        if len(self.snapshots) < count_snapshots(run.current_config, len(run.batches)):
            return
        state, trajectory = run.leader.get_state(), run.leader.posterior.trajectory
        names = trajectory.statistics if trajectory else ()
        self.statistics = {name: state.statistics[name].detach().cpu().clone() for name in names}
        self.updated_buffers, self.records = state.updated_buffers, list(run.status.records)
        self.num_gradients, self.seconds = run.status.num_gradients, seconds
        self.best, self.best_epoch = run.status.best, run.status.best_epoch
        self.is_complete = True


Recordings = dict[tuple[int, ...], Recording]
"""Recordings of the trainings of a fit, by the members that were trained."""


def record_or_replay(
    run: TrainingRun, session: Session, callback: Callback, recording: Recording | None
) -> list[State]:
    """Train a run and record it, or replay its recording.

    A complete recording uses no checkpoints, and gives the callback the records of the epochs only; an empty one is
    made.

    Returns:
        The state of each network.
    """
    if recording is None:
        return train(run, session, callback)
    if not recording.is_complete:
        recording.snapshots.clear()  # of a training that failed, or that a checkpoint continued
        return train(replace(run, record_snapshot=recording.add_snapshot), session, callback)
    with replace(session, manager=CheckpointManager()).open(run, callback) as (engine, state):
        set_training_mode(engine.module)
        run.status.best, run.status.best_epoch = recording.best, recording.best_epoch
        for step, tensors in recording.snapshots:
            load_tensors(state.model, tensors)
            run.collect(step)
        for name, statistic in recording.statistics.items():
            state.statistics[name].copy_(statistic)
    status = run.status
    for branch in (run.leader, *run.followers):
        branch.get_state().updated_buffers = recording.updated_buffers
    status.records, status.num_gradients = list(recording.records), recording.num_gradients
    status.previous_seconds, status.is_trained = recording.seconds, True
    callback.on_resume(status.records)
    return run.states
