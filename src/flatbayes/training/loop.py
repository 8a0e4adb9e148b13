"""The one training loop: every posterior, every flatness, on Lightning Fabric's devices and precisions."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, LossFn, State, TrainingProgress, subset_batch
from flatbayes.core.context import vectorized
from flatbayes.core.randomness import RandomState, seeded_rng
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.fsdp import gather_state, shard_module
from flatbayes.training.distributed.process_group import ProcessGroupInfo, make_synchronized_closure
from flatbayes.training.engine import Engine

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NO_CHECKPOINTS = CheckpointManager()


@dataclass
class TrainingRun:
    """One training run, or several as one, and how far it has come.

    Attributes:
        module: What is trained: a network, or several stacked.
        init_state: The posterior's state before the first step, given the module.
        posterior: Decides what is done with the gradients.
        flatness: Decides where they are taken.
        loss_fn: The loss, of stacked networks one of each.
        batches: The training data.
        config: How to train.
        seed: Decides everything random but the batches.
        validate: Measures every network in the module between epochs; decides nothing.
        num_networks: How many networks the module holds.
        split_state: The state of each of them.
        num_gradients: Forward and backward passes of a network so far; one over a part of the batch counts as that
            part.
        state: The posterior's state, once training has begun.
        progress: The step, and what the flatness remembers.
        completed_epochs: Whole epochs so far.
        loss_sum: Of the steps of the epoch that is under way.
        records: What was seen of the epochs so far.
    """

    module: nn.Module
    init_state: Callable[[nn.Module], State]
    posterior: Posterior
    flatness: Flatness
    loss_fn: LossFn
    batches: TrainingBatches
    config: TrainingConfig
    seed: int
    validate: Callable[[nn.Module], Sequence[Mapping[str, float]]] | None = None
    num_networks: int = 1
    split_state: Callable[[State], list[State]] = lambda state: [state]
    num_gradients: float = 0
    state: State | None = None
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    completed_epochs: int = 0
    loss_sum: Tensor | float = 0.0
    records: list[Record] = field(default_factory=list)

    @property
    def states(self) -> list[State]:
        """The state of each network, as far as it has come; none before training has begun."""
        return [] if self.state is None else self.split_state(self.state)

    def train(
        self,
        fabric: "Fabric",
        callback: Callback,
        checkpoint_manager: CheckpointManager = NO_CHECKPOINTS,
        run_index: int = 0,
    ) -> list[State]:
        """Train to the end of the recipe, from the last checkpoint if there is one.

        Args:
            fabric: Device and precision.
            callback: Sees every step and epoch.
            checkpoint_manager: Keeps checkpoints.
            run_index: That of this job among those that the keeper serves.

        Raises:
            RuntimeError: The loss is not finite.
            OSError: A checkpoint cannot be written.
        """
        recipe, batches, course, world = (
            self.config,
            self.batches,
            self.progress,
            ProcessGroupInfo.from_fabric(fabric),
        )
        in_parts = recipe.distribution.strategy == "fsdp"
        module = place_module(copy.deepcopy(self.module) if in_parts else self.module, fabric, recipe)
        world.broadcast_tensors([*module.parameters(), *module.buffers()])
        if in_parts:
            module = shard_module(module, world, fabric.device)
        state = self.init_state(module)
        self.state = None if in_parts else state
        module = state.model  # some posteriors train a changed copy
        engine = Engine.create(fabric, module, state.optimizer, recipe)  # type: ignore[arg-type]  # there is one
        state.optimizer = optimizer = engine.optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        total_steps = course.total_steps = recipe.epochs * len(batches)
        watched = recipe.validation_epochs()
        with seeded_rng(self.seed, module), vectorized(self.num_networks if self.num_networks > 1 else 0):
            saved = world.read_on_main(lambda: checkpoint_manager.load_latest(run_index))
            if saved is not None:
                self._restore_checkpoint(saved, engine, world)
                callback.on_resume(self.records)
            for epoch in range(self.completed_epochs, recipe.epochs):
                module.train()
                for batch in batches.iter_epoch(epoch, course.step - epoch * len(batches)):
                    factor = recipe.schedule.factor(course.step, total_steps)
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                    closure = self._make_flat_closure(engine, batch, world, course)
                    loss = self.posterior.step(state, self._clip_closure(engine, closure))
                    if recipe.is_collection_step(course.step, len(batches)):
                        self.posterior.collect(state)
                    self.loss_sum = self.loss_sum + loss
                    course.advance()
                    callback.on_step_end(course.step, loss.mean() if loss.ndim else loss, rates[0] * factor)
                    ended = course.step % len(batches) == 0
                    if (
                        not ended
                        and batches.can_skip_batches
                        and self._should_checkpoint(checkpoint_manager, world, epoch_ended=False)
                    ):
                        checkpoint_manager.save(run_index, course.step, self._make_checkpoint(engine, world))
                world.synchronize_buffers(module)
                mean_losses = _to_floats(self.loss_sum / len(batches))
                for run, mean_loss in enumerate(mean_losses):
                    if not math.isfinite(mean_loss):
                        raise RuntimeError(self._format_divergence(mean_loss, run, epoch + 1, rates[0]))
                self.completed_epochs, self.loss_sum = epoch + 1, 0.0
                measured: Sequence[Mapping[str, float]] = [{}] * self.num_networks
                if self.validate is not None and epoch + 1 in watched:
                    measured = self.validate(module)
                for run, mean_loss in enumerate(mean_losses):
                    which = {} if self.num_networks == 1 else {"run": run}
                    about = {"epoch": epoch + 1, "step": course.step, "loss": mean_loss, "lr": rates[0] * factor}
                    self.records.append({**which, **about, **measured[run]})
                    callback.on_epoch_end(self.records[-1])
                    if epoch + 1 == recipe.epochs and math.isnan(measured[run].get("val_nll", 0.0)):
                        raise RuntimeError(
                            self._format_divergence(math.nan, run, epoch + 1, rates[0], "validation loss")
                        )
                if self._should_checkpoint(checkpoint_manager, world, epoch_ended=True):
                    checkpoint_manager.save(run_index, course.step, self._make_checkpoint(engine, world))
        module.eval()
        if in_parts:
            self.state = gather_state(state, self.init_state, place_module(self.module, fabric, recipe).eval(), world)
        return self.states

    def _should_checkpoint(
        self, checkpoint_manager: CheckpointManager, world: ProcessGroupInfo, *, epoch_ended: bool
    ) -> bool:
        step = self.progress.step
        return checkpoint_manager.is_candidate_step(step, epoch_ended=epoch_ended) and world.broadcast(
            checkpoint_manager.is_due(step, epoch_ended=epoch_ended)
        )

    def _make_checkpoint(self, engine: Engine, world: ProcessGroupInfo) -> dict[str, Any]:
        state = self.state
        own = {
            "course": self.progress.state_dict(),
            "random": RandomState.capture(engine.module).state_dict(),
            "batches": self.batches.state_dict(),
            "buffers": dict(engine.module.named_buffers()) if world.size > 1 else {},
        }
        first, *others = world.all_gather(own)
        return {
            "state": None if state is None else state.state_dict(),
            **first,
            "others": others,  # what is not the same in all processes
            "scaler": engine.fabric.strategy.precision.state_dict(),
            "completed_epochs": self.completed_epochs,
            "loss_sum": self.loss_sum,
            "gradients": self.num_gradients,
            "records": self.records,
        }

    def _restore_checkpoint(self, checkpoint: Mapping[str, Any], engine: Engine, world: ProcessGroupInfo) -> None:
        own = checkpoint if world.is_main_process else checkpoint["others"][world.rank - 1]
        if self.state is not None:
            self.state.load_state_dict(checkpoint["state"])
        buffers = dict(engine.module.named_buffers())
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        self.progress.load_state_dict(own["course"])
        self.batches.load_state_dict(own["batches"])
        engine.fabric.strategy.precision.load_state_dict(checkpoint["scaler"])
        self.completed_epochs, self.num_gradients = checkpoint["completed_epochs"], checkpoint["gradients"]
        loss_sum = checkpoint["loss_sum"]
        self.loss_sum = loss_sum if isinstance(loss_sum, float) else loss_sum.to(engine.fabric.device)
        self.records = list(checkpoint["records"])
        RandomState.from_state_dict(own["random"]).restore()

    def _make_flat_closure(
        self, engine: Engine, batch: tuple[Tensor, Tensor], world: ProcessGroupInfo, progress: TrainingProgress
    ) -> Closure:
        closure, module = self._make_closure(engine, batch), engine.module
        if world.size == 1:
            return self.flatness(closure, module, progress)
        trained = () if self.config.distribution.strategy == "fsdp" else engine.params  # which has averaged them

        def synchronize(closure: Closure) -> Closure:
            return make_synchronized_closure(closure, world, module, trained, lambda: len(subset_batch(batch[0])[0]))

        if self.config.distribution.ascent_scope == "synchronised":
            return self.flatness(synchronize(closure), module, progress)
        return synchronize(self.flatness(closure, module, progress))

    def _make_closure(self, engine: Engine, batch: tuple[Tensor, Tensor]) -> Closure:
        inputs, targets = (tensor.to(engine.fabric.device, non_blocking=True) for tensor in batch)
        if self.batches.transform is not None:
            inputs = self.batches.transform(inputs)
        if self.config.precision.mode == "64-true" and inputs.is_floating_point():
            inputs = inputs.double()
        if self.config.precision.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)

        def closure() -> Tensor:
            part, labels = subset_batch(inputs, targets)
            self.num_gradients += self.num_networks * (1 if len(part) == len(inputs) else len(part) / len(inputs))
            pieces = min(self.config.optimization.accumulation_steps, len(part))
            engine.zero_grad()
            total: Tensor | None = None
            for x, y in _split_batch(part, labels, pieces):
                loss = self.loss_fn(engine.network(x), y)
                if pieces > 1:
                    loss = loss * (len(x) / len(part))
                engine.backward(loss.sum() if loss.ndim else loss)  # of the sum, each network gets its own gradient
                total = loss.detach() if total is None else total + loss.detach()
            return total  # type: ignore[return-value]  # there is at least one piece

        return closure

    def _clip_closure(self, engine: Engine, closure: Closure) -> Closure:
        scaled = self.config.precision.mode == "16-mixed"  # clipping to infinity is what takes the scale off
        if self.config.optimization.clip_norm is None and not scaled:
            return closure
        largest = math.inf if self.config.optimization.clip_norm is None else self.config.optimization.clip_norm

        def clipped_closure() -> Tensor:
            loss = closure()
            engine.clip_gradients(largest)
            return loss

        return clipped_closure

    def _format_divergence(self, loss: float, member: int, epoch: int, lr: float, quantity: str = "loss") -> str:
        which = "" if self.num_networks == 1 else f" of run {member + 1}"
        return (
            f"The {quantity}{which} is {loss} in epoch {epoch} of {self.config.epochs}. Try a lower learning rate (now "
            f"{lr:g}), a smaller rho (now {self.flatness}), clipping (--optimization.clip_norm 1), or --precision.mode.mode 32-true (now "
            f"{self.config.precision.mode})."
        )


def place_module(module: nn.Module, fabric: "Fabric", config: TrainingConfig) -> nn.Module:
    """The module, on the device and in the precision that it is trained in."""
    there: nn.Module = fabric.to_device(module.double() if config.precision.mode == "64-true" else module)
    if config.precision.channels_last:
        there = there.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return there


def _split_batch(inputs: Tensor, targets: Tensor, num_micro_batches: int) -> Iterable[tuple[Tensor, Tensor]]:
    if num_micro_batches == 1:
        return [(inputs, targets)]
    return zip(inputs.tensor_split(num_micro_batches), targets.tensor_split(num_micro_batches), strict=True)


def _to_floats(losses: Tensor | float) -> list[float]:
    return torch.as_tensor(losses).reshape(-1).tolist()
