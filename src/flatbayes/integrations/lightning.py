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

from flatbayes.core import TrainingProgress
from flatbayes.core.optional import require_package
from flatbayes.core.parameter_selection import ParameterSelection
from flatbayes.core.randomness import RandomState
from flatbayes.flatness import Flatness
from flatbayes.integrations.allreduce import synchronize_gradients
from flatbayes.integrations.tracker import CollectionConfig, TrainingTracker, count_examples, count_optimizer_steps
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior

with require_package("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    from flatbayes.integrations.lightning_closure import MicroBatch, StepClosure, extract_loss, override_methods


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
        params: ParameterSelection = "all",
        network: str = "",
        num_data: int | None = None,
    ) -> None:
        self.flatness = flatness
        self.network = network
        self._collection_config = CollectionConfig(swag, collect_from, collect_per_epoch, params, num_data)
        self._tracker: TrainingTracker | None = None
        self._pending_state_dict: Mapping[str, Any] | None = None
        self._micro_batches: list[MicroBatch] = []
        self._losses: list[Tensor | None] = []
        self._method_overrides = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the two methods.

        Raises:
            ValueError: The module optimises by hand, takes its batches from an iterator, or is split over processes.
        """
        if stage != "fit":
            return
        check_supported(trainer, pl_module)
        own = pl_module.training_step
        stand_ins = {
            "training_step": self._wrap_training_step(own, pl_module),
            "optimizer_step": self._wrap_optimizer_step(own, trainer, pl_module),
        }
        self._method_overrides.enter_context(override_methods(pl_module, **stand_ins))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the methods back."""
        self._clear_micro_batches()
        self._method_overrides.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the methods back."""
        self._clear_micro_batches()
        self._method_overrides.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to follow the training, or go on where the checkpoint was written."""
        total_steps, batches = (
            _to_finite_int(trainer.estimated_stepping_batches),
            _to_finite_int(trainer.num_training_batches),
        )
        if (
            self._pending_state_dict is None
            and self._tracker is not None
            and trainer.global_step == self._tracker.progress.step
        ):
            self._tracker.progress.total_steps = total_steps  # fit once more
            return
        network = pl_module.get_submodule(self.network)
        course = TrainingProgress(step=trainer.global_step, total_steps=total_steps)
        steps_per_epoch = None if batches is None else count_optimizer_steps(batches, trainer.accumulate_grad_batches)
        num_data = count_examples(self._collection_config, _get_train_dataset(trainer))
        self._tracker = TrainingTracker.start_tracking(
            self._collection_config, network, course, steps_per_epoch, num_data
        )
        if self._pending_state_dict is not None:
            self._tracker.load_state_dict(self._pending_state_dict)
            self._pending_state_dict = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch that was left early may have left micro-batches."""
        self._clear_micro_batches()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint needs for training to go on bit for bit."""
        if self._tracker is not None:
            return self._tracker.state_dict()
        return dict(self._pending_state_dict or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from here as soon as training starts."""
        self._pending_state_dict = state_dict

    def make_posterior(
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
        if self._tracker is None:
            raise RuntimeError("There is no posterior before training: call trainer.fit with this callback first.")
        return self._tracker.make_posterior(likelihood, _return_network, transform, statistics_inputs, info)

    def _wrap_training_step(self, training_step: Callable[..., Any], module: LightningModule) -> Callable[..., Any]:
        @wraps(training_step)
        def recording_step(*args: Any, **kwargs: Any) -> Any:
            micro_batch = MicroBatch(args, kwargs, RandomState.capture(module))
            output = training_step(*args, **kwargs)
            loss = extract_loss(output)
            self._micro_batches.append(micro_batch)
            self._losses.append(None if loss is None else loss.detach() / module.trainer.accumulate_grad_batches)
            return output

        return recording_step

    def _wrap_optimizer_step(
        self, training_step: Callable[..., Any], trainer: Trainer, module: LightningModule
    ) -> Callable[..., None]:
        optimizer_step = module.optimizer_step

        @wraps(optimizer_step)
        def flat_optimizer_step(
            epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]
        ) -> None:
            following = self._tracker
            if following is None:  # a Trainer that starts no training takes no steps either
                raise RuntimeError("A step before the start of training: call trainer.fit with this callback.")

            def zero_grad() -> None:
                module.optimizer_zero_grad(epoch, batch_idx, optimizer)

            step = StepClosure(
                trainer, module, training_step, zero_grad, optimizer_closure, self._micro_batches, self._losses
            )
            flat = self.flatness(step, module, following.progress)

            def average_over_processes() -> Tensor | None:
                # Each process looks for its own worst point; what it finds there is averaged.
                strategy = trainer.strategy
                with strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext():
                    loss = flat()
                if isinstance(strategy, DDPStrategy):
                    synchronize_gradients(module)
                return None if self._losses[-1] is None else loss  # Lightning wants to know of a batch left out

            optimizer_step(epoch, batch_idx, optimizer, average_over_processes)
            self._clear_micro_batches()
            following.advance()

        return flat_optimizer_step

    def _clear_micro_batches(self) -> None:
        self._micro_batches.clear()
        self._losses.clear()


def check_supported(trainer: Trainer, module: LightningModule) -> None:
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


def _get_train_dataset(trainer: Trainer) -> object:
    return getattr(trainer.train_dataloader, "dataset", None)


def _to_finite_int(number: float | None) -> int | None:
    return int(number) if number is not None and 0 < number < float("inf") else None


def _return_network(network: nn.Module) -> nn.Module:
    return network
