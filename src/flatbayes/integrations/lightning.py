"""Lightning: a callback that makes the training of any LightningModule sharpness-aware, and collects SWAG.

The module keeps its `training_step` and `configure_optimizers`, the Trainer its flags. While it fits, the callback
stands in for two methods of the module: `training_step`, to note what it is called with, and `optimizer_step`, to
hand the optimiser a closure that asks for gradients where the flatness wants them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import wraps
from typing import Any

from torch import Tensor, nn

from flatbayes.core import Course
from flatbayes.core.randomness import RandomState
from flatbayes.core.selection import Selection
from flatbayes.data.extras import needed
from flatbayes.flatness import Flatness
from flatbayes.integrations.following import Following, Plan, count_examples, steps_of
from flatbayes.integrations.ranks import share
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior

with needed("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    from flatbayes.integrations.lightning_step import MicroBatch, Step, loss_of, standing_in


class FlatCallback(Callback):
    """Makes the training of a LightningModule sharpness-aware, and collects SWAG along the way.

    Args:
        flatness: Where gradients are asked for.
        swag: How iterates are collected; None for the trained network alone.
        collect_from: Share of training after which iterates are collected.
        collect_per_epoch: Iterates an epoch from then on.
        params: The trainable parameters that the posterior is over: a kind, or a list of name patterns.
        network: Name of the submodule that the posterior is over and predicts with; empty for the module itself.
        num_data: Number of training examples; None asks the data set of the training data loader.

    Raises:
        ValueError: One of them is out of range, or `swag` has a prior of its own.
    """

    def __init__(
        self,
        flatness: Flatness,
        swag: SWAG | None = None,
        *,
        collect_from: float = 0.7,
        collect_per_epoch: int = 1,
        params: Selection = "all",
        network: str = "",
        num_data: int | None = None,
    ) -> None:
        self.flatness = flatness
        self.network = network
        self._plan = Plan(swag, collect_from, collect_per_epoch, params, num_data)
        self._following: Following | None = None
        self._saved: Mapping[str, Any] | None = None
        self._micro_batches: list[MicroBatch] = []
        self._losses: list[Tensor | None] = []
        self._stand_ins = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the two methods.

        Raises:
            ValueError: The module optimises by hand, takes its batches from an iterator, or is split over processes.
        """
        if stage != "fit":
            return
        check_module(trainer, pl_module)
        own = pl_module.training_step
        stand_ins = {
            "training_step": self._noting(own, pl_module),
            "optimizer_step": self._stepping(own, trainer, pl_module),
        }
        self._stand_ins.enter_context(standing_in(pl_module, **stand_ins))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the methods back."""
        self._forget()
        self._stand_ins.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the methods back."""
        self._forget()
        self._stand_ins.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to follow the training, or go on where the checkpoint was written."""
        total_steps, batches = _finite(trainer.estimated_stepping_batches), _finite(trainer.num_training_batches)
        if self._saved is None and self._following is not None and trainer.global_step == self._following.course.step:
            self._following.course.total_steps = total_steps  # fit once more
            return
        network = pl_module.get_submodule(self.network)
        course = Course(step=trainer.global_step, total_steps=total_steps)
        steps_per_epoch = None if batches is None else steps_of(batches, trainer.accumulate_grad_batches)
        num_data = count_examples(self._plan, _dataset(trainer))
        self._following = Following.start(self._plan, network, course, steps_per_epoch, num_data)
        if self._saved is not None:
            self._following.load_state_dict(self._saved)
            self._saved = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch that was left early may have left micro-batches."""
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint needs for training to go on bit for bit."""
        if self._following is not None:
            return self._following.state_dict()
        return dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from here as soon as training starts."""
        self._saved = state_dict

    def posterior(
        self,
        likelihood: Likelihood,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        statistics_inputs: Sequence[Tensor] = (),
        info: Mapping[str, Any] | None = None,
    ) -> FittedPosterior:
        """What was fitted, ready to predict; later training leaves it alone.

        Args:
            likelihood: Makes predictions out of the outputs of `forward`.
            transform: Applied to inputs before a network sees them.
            statistics_inputs: Batches of training inputs, on which running statistics of draws are estimated.
            info: Plain data that travels with the artefact.

        Raises:
            RuntimeError: Nothing was trained yet.
        """
        if self._following is None:
            raise RuntimeError("There is no posterior before training: call trainer.fit with this callback first.")
        return self._following.fitted(likelihood, _as_it_is, transform, statistics_inputs, info)

    def _noting(self, training_step: Callable[..., Any], module: LightningModule) -> Callable[..., Any]:
        @wraps(training_step)
        def noted(*args: Any, **kwargs: Any) -> Any:
            micro_batch = MicroBatch(args, kwargs, RandomState.capture(module))
            output = training_step(*args, **kwargs)
            loss = loss_of(output)
            self._micro_batches.append(micro_batch)
            self._losses.append(None if loss is None else loss.detach() / module.trainer.accumulate_grad_batches)
            return output

        return noted

    def _stepping(
        self, training_step: Callable[..., Any], trainer: Trainer, module: LightningModule
    ) -> Callable[..., None]:
        optimizer_step = module.optimizer_step

        @wraps(optimizer_step)
        def stepped(epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
            following = self._following
            if following is None:  # a Trainer that starts no training takes no steps either
                raise RuntimeError("A step before the start of training: call trainer.fit with this callback.")

            def zero_grad() -> None:
                module.optimizer_zero_grad(epoch, batch_idx, optimizer)

            step = Step(
                trainer, module, training_step, zero_grad, optimizer_closure, self._micro_batches, self._losses
            )
            flat = self.flatness(step, module, following.course)

            def everywhere() -> Tensor | None:
                # Each process looks for its own worst point; what it finds there is averaged.
                strategy = trainer.strategy
                with strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext():
                    loss = flat()
                if isinstance(strategy, DDPStrategy):
                    share(module)
                return None if self._losses[-1] is None else loss  # Lightning wants to know of a batch left out

            optimizer_step(epoch, batch_idx, optimizer, everywhere)
            self._forget()
            following.advance()

        return stepped

    def _forget(self) -> None:
        self._micro_batches.clear()
        self._losses.clear()


def check_module(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what cannot be made sharpness-aware from outside.

    Raises:
        ValueError: The module optimises by hand, takes its batches from an iterator, or is split over processes.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} optimises by hand (automatic_optimization=False), so its steps cannot be seen from outside. Use "
            "the flatness in its training_step: loss = flatness(closure, self)()."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(f"training_step of {name} takes an iterator, whose batches cannot be asked for twice.")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"{type(trainer.strategy).__name__} splits the weights over processes, or is not known here; use one "
            "device, or strategy='ddp'."
        )


def _dataset(trainer: Trainer) -> object:
    return getattr(trainer.train_dataloader, "dataset", None)


def _finite(number: float | None) -> int | None:
    return int(number) if number is not None and 0 < number < float("inf") else None


def _as_it_is(network: nn.Module) -> nn.Module:
    return network
