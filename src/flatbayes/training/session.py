"""Training session: device, process group and checkpoints of a training run.

`Session` trains in one process. `ReplicatedSession` averages gradients over processes that hold replicas of the
network, `ShardedSession` over processes that hold shards.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from flatbayes.core import Closure, State, TrainingProgress
from flatbayes.core.buffers import load_buffers
from flatbayes.core.context import vectorized
from flatbayes.core.interrupts import defer_interrupts, get_pending_interrupt, raise_pending_interrupt
from flatbayes.core.networks import copy_network
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import RandomState, Stream, seeded_rng, spawn_seed
from flatbayes.flatness import Flatness
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.closure import BatchClosure
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.fsdp import gather_state, shard_module
from flatbayes.training.distributed.gradient_averaging import make_synchronized_closure
from flatbayes.training.distributed.launch import get_fabric_process_group
from flatbayes.training.early_stopping import (
    BestWeights,
    count_first_epochs,
    is_collection_over,
    is_first_part_over,
    pack_checkpoint,
    unpack_checkpoint,
)
from flatbayes.training.engine import Engine, place_module, set_cudnn_benchmark
from flatbayes.training.fabric import Fabric
from flatbayes.training.run import Branch, TrainingRun

FlatnessFn = Callable[[BatchClosure, nn.Module, TrainingProgress], Closure]
"""Turns the closure of a batch into the closure that the posterior steps with."""


@dataclass(frozen=True, eq=False)
class Session:
    """Training in one process, on one device.

    `run_index` is the index of the run among those that share the checkpoint folder.
    """

    fabric: Fabric
    manager: CheckpointManager
    run_index: int
    world: ProcessGroupInfo

    @contextmanager
    def open(self, run: TrainingRun, callback: Callback) -> Iterator[tuple[Engine, State]]:
        """Place the module, seed the random state, and restore the last checkpoint if there is one.

        Returns:
            Context with the engine and the posterior's state. The caller's random state is restored at its end.
        """
        module = self.place(run)
        with seeded_rng(spawn_seed(Stream.INITIAL_STATE, run.seed), module):  # the same in every process
            state = run.leader.state = run.leader.init_state(module)
        engine = Engine.create(self.fabric, state.model, state.optimizer, run.config)  # type: ignore[arg-type]
        state.optimizer = engine.optimizer
        for branch in run.followers:
            branch.follow(state)
        run.status.progress.total_steps = run.total_steps
        num_vectorized = run.num_networks if run.num_networks > 1 else 0
        is_alone = self.world.size == 1  # processes would have to agree on the step
        with (
            seeded_rng(run.seed, engine.module),
            vectorized(num_vectorized),
            set_cudnn_benchmark(enabled=run.config.precision.cudnn_benchmark),
            defer_interrupts(enabled=is_alone),
        ):
            checkpoint = self.world.read_on_main(lambda: self.manager.load_latest(self.run_index))
            if checkpoint is not None:
                restore_checkpoint(checkpoint, run, engine, self.world)
                callback.on_resume(run.status.records)
            yield engine, state
        engine.module.eval()

    def place(self, run: TrainingRun) -> nn.Module:
        """The module on the device of training."""
        return place_module(run.module, self.fabric, run.config)

    def distribute(self, flatness: Flatness, engine: Engine) -> FlatnessFn:
        """The flatness, with gradients averaged over the processes."""
        return flatness

    def synchronize_buffers(self, module: nn.Module, updated_buffers: Collection[str]) -> None:
        """Average the updated running statistics over the processes."""
        self.world.synchronize_buffers(module, updated_buffers)

    def save_checkpoint(self, run: TrainingRun, engine: Engine, *, epoch_ended: bool) -> None:
        """Write a checkpoint if one is due after this step, or if the training is interrupted after it.

        Raises:
            OSError: It cannot be written.
            KeyboardInterrupt: Ctrl-C was pressed, or SIGTERM or SIGHUP received.
        """
        step = run.status.progress.step
        is_resumable = epoch_ended or run.batches.can_skip_batches
        if get_pending_interrupt() is not None:
            if is_resumable:
                self.manager.save(self.run_index, step, make_checkpoint(run, engine, self.world))
            raise_pending_interrupt()
        if not is_resumable or not self.manager.is_candidate_step(step, epoch_ended=epoch_ended):
            return
        if self.world.broadcast(self.manager.is_due(step, epoch_ended=epoch_ended)):  # by the main process's clock
            self.manager.save(self.run_index, step, make_checkpoint(run, engine, self.world))

    def stop_early(self, run: TrainingRun, engine: Engine) -> bool:
        """Compare the last evaluation with the best one; go back to that, or end the training, if it is time for it.

        Returns:
            Whether the length of the training has changed.
        """
        status, config = run.status, run.current_config
        val_nll = status.records[-1].get("val_nll") if status.records else None
        if not config.stops_early or run.num_networks > 1 or status.is_sharded or val_nll is None:
            return False
        epoch, best = status.completed_epochs, status.best or BestWeights()
        first_epochs = count_first_epochs(config)
        if best.update(float(val_nll), epoch, run.leader.get_state()):
            is_first_part = epoch < first_epochs
            status.best = None  # a checkpoint in a checkpoint
            best.checkpoint = pack_checkpoint(make_checkpoint(run, engine, self.world)) if is_first_part else None
            status.best = best
        if is_collection_over(config, epoch, best.epoch, len(run.batches)):
            status.last_epoch = epoch
            status.progress.total_steps = status.progress.step
            return True
        if best.checkpoint is None or not is_first_part_over(config, epoch, best.epoch):
            return False
        num_gradients, previous_seconds = status.num_gradients, status.previous_seconds
        branch_seconds = [branch.seconds for branch in run.branches]
        restore_checkpoint(unpack_checkpoint(best.checkpoint), run, engine, self.world)
        best.checkpoint, status.best, status.best_epoch = None, best, best.epoch
        # The cost of the epochs that are given up counts, once.
        status.num_gradients, status.previous_seconds = num_gradients, previous_seconds
        for branch, seconds in zip(run.branches, branch_seconds, strict=True):
            branch.seconds = seconds
        status.progress.total_steps = run.total_steps
        status.progress.restart = status.progress.step, config.collection.start_fraction
        return True

    def gather(self, run: TrainingRun, state: State) -> None:
        """Gather the whole state after training."""


@dataclass(frozen=True, eq=False)
class ReplicatedSession(Session):
    """Training in several processes with a replica of the network each.

    Attributes:
        config: Its `distribution.ascent_scope` is the batch on which the ascent is computed.
    """

    config: TrainingConfig

    def place(self, run: TrainingRun) -> nn.Module:
        """The module on the device of training, with the weights of the main process."""
        module = super().place(run)
        self.world.broadcast_tensors([*module.parameters(), *module.buffers()])
        return module

    def distribute(self, flatness: Flatness, engine: Engine) -> FlatnessFn:
        """The flatness, with gradients averaged over the processes: after the ascent, or within it."""

        def distributed_flatness(closure: BatchClosure, module: nn.Module, progress: TrainingProgress) -> Closure:
            def synchronize(local: Closure) -> Closure:
                params, batch_size = self.get_unsynchronized(engine), len(closure.targets)
                return make_synchronized_closure(
                    local, self.world, module, params, lambda: closure.num_examples, batch_size
                )

            if self.config.distribution.ascent_scope == "synchronised":
                return flatness(synchronize(closure), module, progress)
            return synchronize(flatness(closure, module, progress))

        return distributed_flatness

    def get_unsynchronized(self, engine: Engine) -> tuple[Any, ...]:
        """The tensors whose gradients are not averaged by the backward pass."""
        return engine.params


@dataclass(frozen=True, eq=False)
class ShardedSession(ReplicatedSession):
    """Training in several processes with a shard of the network each."""

    def place(self, run: TrainingRun) -> nn.Module:
        """A sharded copy of the module on the device of training."""
        run.status.is_sharded = True
        module = place_module(copy_network(run.module), self.fabric, run.config)
        self.world.broadcast_tensors([*module.parameters(), *module.buffers()])
        return shard_module(module, self.world, self.fabric.device)

    def get_unsynchronized(self, engine: Engine) -> tuple[Any, ...]:
        """None: the backward pass of a sharded module averages its gradients."""
        return ()

    def gather(self, run: TrainingRun, state: State) -> None:
        """Gather the state from the shards of all processes, in a network that is not sharded."""
        module = place_module(run.module, self.fabric, run.config).eval()
        run.leader.state = gather_state(state, run.leader.init_state, module, self.world)
        run.status.is_sharded = False


def make_session(config: TrainingConfig, fabric: Fabric, manager: CheckpointManager, run_index: int) -> Session:
    """The session for a configuration."""
    world = get_fabric_process_group(fabric)
    if world.size == 1:
        return Session(fabric, manager, run_index, world)
    kind = ShardedSession if config.distribution.strategy == "fsdp" else ReplicatedSession
    return kind(fabric, manager, run_index, world, config)


def make_checkpoint(run: TrainingRun, engine: Engine, world: ProcessGroupInfo) -> dict[str, Any]:
    """Everything that a run needs to continue bit for bit; every process must call this."""
    status = run.status
    own = {
        "progress": status.progress.state_dict(),
        "random": RandomState.capture(engine.module).state_dict(),
        "batches": run.batches.state_dict(),
        "buffers": dict(engine.module.named_buffers()) if world.size > 1 else {},
    }
    main, *others = world.all_gather(own)
    return {
        "state": None if status.is_sharded else run.leader.get_state().state_dict(),
        **main,
        "others": others,  # what differs between processes
        "scaler": engine.scaler_state_dict(),
        "completed_epochs": status.completed_epochs,
        "loss_sum": status.loss_sum,
        "num_gradients": status.num_gradients,
        "records": status.records,
        "run_seconds": status.elapsed_seconds(),
        "best": None if status.best is None else status.best.state_dict(),
        "best_epoch": status.best_epoch,
        "last_epoch": status.last_epoch,
        "branches": {branch.name: _save_branch(branch) for branch in run.branches} if len(run.branches) > 1 else {},
    }


def restore_checkpoint(
    checkpoint: Mapping[str, Any], run: TrainingRun, engine: Engine, world: ProcessGroupInfo
) -> None:
    """Continue from a checkpoint of `make_checkpoint`, made by as many processes; the run is restored in place."""
    status = run.status
    own = checkpoint if world.is_main_process else checkpoint["others"][world.rank - 1]
    if not status.is_sharded:
        branches = checkpoint.get("branches", {})  # of a run of one posterior there are none
        saved = branches.get(run.leader.name, {}).get("statistics", checkpoint["state"]["statistics"])
        run.leader.get_state().load_state_dict({**checkpoint["state"], "statistics": saved})
        for branch in run.branches if branches else ():
            _restore_branch(branches[branch.name], branch)
    load_buffers(engine.module, own["buffers"])
    status.progress.load_state_dict(own["progress"])
    run.batches.load_state_dict(own["batches"])
    engine.load_scaler_state_dict(checkpoint["scaler"])
    status.completed_epochs, status.num_gradients = checkpoint["completed_epochs"], checkpoint["num_gradients"]
    status.previous_seconds = checkpoint.get("run_seconds", 0.0)
    best, status.best_epoch, status.last_epoch = map(checkpoint.get, ("best", "best_epoch", "last_epoch"))
    status.best = None if best is None else BestWeights(**best)
    loss_sum = checkpoint["loss_sum"]
    status.loss_sum = loss_sum if isinstance(loss_sum, float) else loss_sum.to(engine.device)
    status.records = list(checkpoint["records"])
    # Last: nothing may draw random numbers after it.
    RandomState.from_state_dict(own["random"], engine.device).restore()


def _save_branch(branch: Branch) -> dict[str, Any]:
    """Statistics of a branch, which torch writes once if others share them, and its error as text."""
    return {
        "statistics": {} if branch.state is None else dict(branch.state.statistics),
        "seconds": branch.seconds,
        "error": None if branch.error is None else str(branch.error),
    }


def _restore_branch(saved: Mapping[str, Any], branch: Branch) -> None:
    branch.seconds = saved["seconds"]
    if saved["error"] is not None:
        branch.error = RuntimeError(saved["error"])
    elif branch.error is None:
        for name, tensor in saved["statistics"].items():
            branch.get_state().statistics[name].detach().copy_(tensor)
