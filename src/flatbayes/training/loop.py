"""The one training loop: every posterior, every flatness, on Lightning Fabric's devices and precisions."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Course, LossFn, State, asked_part
from flatbayes.core.randomness import RandomState, forked
from flatbayes.core.stacked import stacked
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.checkpoint import Keeper
from flatbayes.training.engine import Engine
from flatbayes.training.processes.parallel import World, shared
from flatbayes.training.processes.sharded import sharded, together_again
from flatbayes.training.recipe import Recipe
from flatbayes.training.watching.watch import Record, Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NOWHERE = Keeper()


@dataclass
class Job:
    """One training run, or several as one, and how far it has come.

    Attributes:
        module: What is trained: a network, or several stacked.
        start: The posterior's state before the first step, given the module.
        posterior: Decides what is done with the gradients.
        flatness: Decides where they are taken.
        loss_fn: The loss, of stacked networks one of each.
        batches: The training data.
        recipe: How to train.
        seed: Decides everything random but the batches.
        validate: Measures every network in the module between epochs; decides nothing.
        networks: How many networks the module holds.
        apart: The state of each of them.
        gradients: Forward and backward passes of a network so far; one over a part of the batch counts as that part.
        state: The posterior's state, once training has begun.
        course: The step, and what the flatness remembers.
        epochs_done: Whole epochs so far.
        loss_sum: Of the steps of the epoch that is under way.
        records: What was seen of the epochs so far.
    """

    module: nn.Module
    start: Callable[[nn.Module], State]
    posterior: Posterior
    flatness: Flatness
    loss_fn: LossFn
    batches: TrainingBatches
    recipe: Recipe
    seed: int
    validate: Callable[[nn.Module], Sequence[Mapping[str, float]]] | None = None
    networks: int = 1
    apart: Callable[[State], list[State]] = lambda state: [state]
    gradients: float = 0
    state: State | None = None
    course: Course = field(default_factory=Course)
    epochs_done: int = 0
    loss_sum: Tensor | float = 0.0
    records: list[Record] = field(default_factory=list)

    @property
    def states(self) -> list[State]:
        """The state of each network, as far as it has come; none before training has begun."""
        return [] if self.state is None else self.apart(self.state)

    def train(self, fabric: "Fabric", watch: Watch, keeper: Keeper = NOWHERE, number: int = 0) -> list[State]:
        """Train to the end of the recipe, from the last checkpoint if there is one.

        Args:
            fabric: Device and precision.
            watch: Sees every step and epoch.
            keeper: Keeps checkpoints.
            number: That of this job among those that the keeper serves.

        Raises:
            RuntimeError: The loss is not finite.
            OSError: A checkpoint cannot be written.
        """
        recipe, batches, course, world = self.recipe, self.batches, self.course, World.of(fabric)
        in_parts = recipe.strategy == "fsdp"
        module = placed(copy.deepcopy(self.module) if in_parts else self.module, fabric, recipe)
        world.copy_from_first([*module.parameters(), *module.buffers()])
        if in_parts:
            module = sharded(module, world, fabric.device)
        state = self.start(module)
        self.state = None if in_parts else state
        module = state.model  # some posteriors train a changed copy
        engine = Engine.start(fabric, module, state.optimizer, recipe)  # type: ignore[arg-type]  # there is one
        state.optimizer = optimizer = engine.optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        total_steps = course.total_steps = recipe.epochs * len(batches)
        watched = recipe.validated()
        with forked(self.seed, module), stacked(self.networks if self.networks > 1 else 0):
            saved = world.read_by_first(lambda: keeper.under_way(number))
            if saved is not None:
                self._load(saved, engine, world)
                watch.again(self.records)
            for epoch in range(self.epochs_done, recipe.epochs):
                module.train()
                for batch in batches.epoch(epoch, course.step - epoch * len(batches)):
                    factor = recipe.schedule.factor(course.step, total_steps)
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                    closure = self._flat(engine, batch, world, course)
                    loss = self.posterior.step(state, self._clipped(engine, closure))
                    if recipe.collects(course.step, len(batches)):
                        self.posterior.collect(state)
                    self.loss_sum = self.loss_sum + loss
                    course.advance()
                    watch.step(course.step, loss.mean() if loss.ndim else loss, rates[0] * factor)
                    ended = course.step % len(batches) == 0
                    if not ended and batches.skips and self._is_due(keeper, world, epoch_ended=False):
                        keeper.keep(number, course.step, self._saved(engine, world))
                world.agree_on_buffers(module)
                mean_losses = _numbers(self.loss_sum / len(batches))
                for run, mean_loss in enumerate(mean_losses):
                    if not math.isfinite(mean_loss):
                        raise RuntimeError(self._diverged(mean_loss, run, epoch + 1, rates[0]))
                self.epochs_done, self.loss_sum = epoch + 1, 0.0
                measured: Sequence[Mapping[str, float]] = [{}] * self.networks
                if self.validate is not None and epoch + 1 in watched:
                    measured = self.validate(module)
                for run, mean_loss in enumerate(mean_losses):
                    which = {} if self.networks == 1 else {"run": run}
                    about = {"epoch": epoch + 1, "step": course.step, "loss": mean_loss, "lr": rates[0] * factor}
                    self.records.append({**which, **about, **measured[run]})
                    watch.epoch(self.records[-1])
                    if epoch + 1 == recipe.epochs and math.isnan(measured[run].get("val_nll", 0.0)):
                        raise RuntimeError(self._diverged(math.nan, run, epoch + 1, rates[0], "validation loss"))
                if self._is_due(keeper, world, epoch_ended=True):
                    keeper.keep(number, course.step, self._saved(engine, world))
        module.eval()
        if in_parts:
            self.state = together_again(state, self.start, placed(self.module, fabric, recipe).eval(), world)
        return self.states

    def _is_due(self, keeper: Keeper, world: World, *, epoch_ended: bool) -> bool:
        step = self.course.step
        return keeper.has_turn(step, epoch_ended=epoch_ended) and world.from_first(
            keeper.due(step, epoch_ended=epoch_ended)
        )

    def _saved(self, engine: Engine, world: World) -> dict[str, Any]:
        state = self.state
        own = {
            "course": self.course.state_dict(),
            "random": RandomState.capture(engine.module).state_dict(),
            "batches": self.batches.state_dict(),
            "buffers": dict(engine.module.named_buffers()) if world.size > 1 else {},
        }
        first, *others = world.gathered(own)
        return {
            "state": None if state is None else state.state_dict(),
            **first,
            "others": others,  # what is not the same in all processes
            "scaler": engine.fabric.strategy.precision.state_dict(),
            "epochs_done": self.epochs_done,
            "loss_sum": self.loss_sum,
            "gradients": self.gradients,
            "records": self.records,
        }

    def _load(self, saved: Mapping[str, Any], engine: Engine, world: World) -> None:
        own = saved if world.is_first else saved["others"][world.rank - 1]
        if self.state is not None:
            self.state.load_state_dict(saved["state"])
        buffers = dict(engine.module.named_buffers())
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        self.course.load_state_dict(own["course"])
        self.batches.load_state_dict(own["batches"])
        engine.fabric.strategy.precision.load_state_dict(saved["scaler"])
        self.epochs_done, self.gradients = saved["epochs_done"], saved["gradients"]
        loss_sum = saved["loss_sum"]
        self.loss_sum = loss_sum if isinstance(loss_sum, float) else loss_sum.to(engine.fabric.device)
        self.records = list(saved["records"])
        RandomState.from_state_dict(own["random"]).restore()

    def _flat(self, engine: Engine, batch: tuple[Tensor, Tensor], world: World, course: Course) -> Closure:
        closure, module = self._closure(engine, batch), engine.module
        if world.size == 1:
            return self.flatness(closure, module, course)
        trained = () if self.recipe.strategy == "fsdp" else engine.trained  # which has averaged them

        def of_all(closure: Closure) -> Closure:
            return shared(closure, world, module, trained, lambda: len(asked_part(batch[0])[0]))

        if self.recipe.ascent == "synchronised":
            return self.flatness(of_all(closure), module, course)
        return of_all(self.flatness(closure, module, course))

    def _closure(self, engine: Engine, batch: tuple[Tensor, Tensor]) -> Closure:
        inputs, targets = (tensor.to(engine.fabric.device, non_blocking=True) for tensor in batch)
        if self.batches.transform is not None:
            inputs = self.batches.transform(inputs)
        if self.recipe.precision == "64-true" and inputs.is_floating_point():
            inputs = inputs.double()
        if self.recipe.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)

        def closure() -> Tensor:
            part, labels = asked_part(inputs, targets)
            self.gradients += self.networks * (1 if len(part) == len(inputs) else len(part) / len(inputs))
            pieces = min(self.recipe.accumulate, len(part))
            engine.zero_grad()
            total: Tensor | None = None
            for x, y in _cut(part, labels, pieces):
                loss = self.loss_fn(engine.network(x), y)
                if pieces > 1:
                    loss = loss * (len(x) / len(part))
                engine.backward(loss.sum() if loss.ndim else loss)  # of the sum, each network gets its own gradient
                total = loss.detach() if total is None else total + loss.detach()
            return total  # type: ignore[return-value]  # there is at least one piece

        return closure

    def _clipped(self, engine: Engine, closure: Closure) -> Closure:
        scaled = self.recipe.precision == "16-mixed"  # clipping to infinity is what takes the scale off
        if self.recipe.clip_norm is None and not scaled:
            return closure
        largest = math.inf if self.recipe.clip_norm is None else self.recipe.clip_norm

        def clipped() -> Tensor:
            loss = closure()
            engine.clip(largest)
            return loss

        return clipped

    def _diverged(self, loss: float, run: int, epoch: int, rate: float, what: str = "loss") -> str:
        which = "" if self.networks == 1 else f" of run {run + 1}"
        return (
            f"The {what}{which} is {loss} in epoch {epoch} of {self.recipe.epochs}. Try a lower learning rate (now "
            f"{rate:g}), a smaller rho (now {self.flatness}), clipping (--clip_norm 1), or precision 32-true (now "
            f"{self.recipe.precision})."
        )


def placed(module: nn.Module, fabric: "Fabric", recipe: Recipe) -> nn.Module:
    """The module, on the device and in the precision that it is trained in."""
    there: nn.Module = fabric.to_device(module.double() if recipe.precision == "64-true" else module)
    if recipe.channels_last:
        there = there.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return there


def _cut(inputs: Tensor, targets: Tensor, pieces: int) -> Iterable[tuple[Tensor, Tensor]]:
    if pieces == 1:
        return [(inputs, targets)]
    return zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True)


def _numbers(losses: Tensor | float) -> list[float]:
    return torch.as_tensor(losses).reshape(-1).tolist()
