"""Lightning callback for sharpness-aware training of any LightningModule, with any posterior that one run can train.

Module and Trainer stay unchanged, and are those of the package `lightning` or `pytorch_lightning`. During a fit the
callback replaces two methods of the module: `training_step`, to record its arguments, and `optimizer_step`, to pass
the optimizer the closure that the flatness makes. In it the `step` of the optimizer is that of the posterior.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.components import resolve_component
from flatbayes.core.optional import require_package
from flatbayes.core.parameter_selection import ParameterSelection, only_optimized
from flatbayes.core.randomness import RandomState
from flatbayes.core.renames import explain_old_arguments
from flatbayes.flatness import Flatness
from flatbayes.integrations.fitted_posteriors import make_fitted_posterior
from flatbayes.integrations.posterior_steps import freeze_norm_statistics, override_methods, synchronize_gradients
from flatbayes.integrations.tracker import TrainingTracker, copy_batch, count_optimizer_steps, is_single_pass
from flatbayes.integrations.tracker_config import make_tracker_config
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior

with require_package("lightning"):
    if TYPE_CHECKING:
        from lightning.pytorch import Callback, LightningModule, Trainer
    elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning import Callback
    else:
        try:
            from lightning.pytorch import Callback
        except ImportError:
            from pytorch_lightning import Callback

    from flatbayes.integrations.lightning_steps import (
        MicroBatch,
        MicroBatchRecord,
        StepClosure,
        check_steps,
        check_supported,
        extract_loss,
        get_class_names,
        get_network,
        get_optimizer,
    )


class FlatCallback(Callback):
    """Sharpness-aware training of a LightningModule, with a posterior.

    Args:
        flatness: The flatness.
        posterior: The posterior, which takes the steps with the optimizer of the module; None is `MAP()`, the trained
            network alone.
        start_fraction: Fraction of training, or of each cycle, after which snapshots are collected.
        snapshots_per_epoch: Snapshots collected per epoch from then on; None is one, or in a short training as many
            as give ten in total.
        params: The trainable parameters that the posterior is over: a kind, or a list of name patterns.
        network: Name of the submodule that the posterior is over and predicts with; empty for the module itself.
        num_data: Number of labelled training examples; None counts those of a pass over the training data loader,
            from its sampler and batch size.
        num_cycles: Number of cycles of the learning rate of the module's scheduler; each ends with snapshots.

    Raises:
        ValueError: An argument is out of range, the posterior does not go with the flatness, or it needs several
            training runs.

    Examples:
        >>> import lightning
        >>> class Classifier(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = nn.Linear(4, 3)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> loader = torch.utils.data.DataLoader([*zip(examples, classes)], batch_size=3)
        >>> flat = FlatCallback(SAM(rho=0.05), SWAG(rank=2), network="network")
        >>> trainer = lightning.Trainer(max_epochs=4, callbacks=[flat], accelerator="cpu", barebones=True)
        >>> trainer.fit(Classifier(), loader)
        >>> flat.make_posterior(Categorical(3)).predict(examples).mean.shape
        torch.Size([12, 3])
    """

    def __init__(
        self,
        flatness: Flatness,
        posterior: Posterior | None = None,
        *,
        start_fraction: float = 0.7,
        snapshots_per_epoch: int | None = None,
        params: ParameterSelection = "all",
        network: str = "",
        num_data: int | None = None,
        num_cycles: int = 1,
    ) -> None:
        self.flatness = resolve_component(flatness, Flatness, "flatness")
        self.network = network
        self._tracker_config = make_tracker_config(
            posterior, start_fraction, snapshots_per_epoch, params, num_data, num_cycles
        )
        self._tracker_config.check_flatness(self.flatness)
        self._tracker: TrainingTracker | None = None
        self._pending_state_dict: Mapping[str, Any] | None = None
        self._checkpoint_use: Literal["resume", "go back", "ignore"] = "resume"
        self._record = MicroBatchRecord()
        self._method_overrides = ExitStack()
        self._frozen_norms = ExitStack()

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Replace the two methods.

        Raises:
            ValueError: The module uses manual optimization or an iterator of batches, its weights are sharded, or the
                posterior does not go with the precision or the accumulation of gradients.
        """
        if stage != "fit":
            return
        check_supported(trainer, pl_module)
        has_loss_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._tracker_config.check_flatness(self.flatness, has_loss_scaler=has_loss_scaler)
        check_steps(self._tracker_config.posterior, trainer.accumulate_grad_batches, has_loss_scaler)
        training_step = pl_module.training_step
        methods = {
            "training_step": self._wrap_training_step(training_step, pl_module),
            "optimizer_step": self._wrap_optimizer_step(training_step, trainer, pl_module),
        }
        self._method_overrides.enter_context(override_methods(pl_module, **methods))

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Restore the methods."""
        self._restore()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Restore the methods, and the types of the layers."""
        self._restore()
        if self._tracker is not None:
            self._tracker.stop_training()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Restore the types of the layers, and warn if too few snapshots have been collected."""
        if self._tracker is not None:
            self._tracker.finish_training()

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Start the tracker, or resume it from a checkpoint.

        Raises:
            ValueError: The posterior does not go with the network or the optimizer; or it needs snapshots, and the
                training collects too few or has no known number of steps.
        """
        state_dict = self._pending_state_dict
        if state_dict is None and self._tracker is not None and self._tracker.progress.step == trainer.global_step:
            state_dict = self._tracker.state_dict()  # the same fit goes on
        num_batches = _to_finite_int(trainer.num_training_batches)
        total_steps = _to_finite_int(trainer.estimated_stepping_batches)
        self._tracker = TrainingTracker.start_tracking(
            self._tracker_config,
            get_network(pl_module, self.network),
            get_optimizer(trainer, pl_module),
            TrainingProgress(step=trainer.global_step, total_steps=total_steps),
            None if num_batches is None else count_optimizer_steps(num_batches, trainer.accumulate_grad_batches),
            self._tracker_config.count_examples(trainer.train_dataloader, num_batches),
            trainer.train_dataloader,
            mixed_precision="precision='bf16-mixed'",
        )
        if state_dict is not None:
            self._tracker.load_state_dict(state_dict)
            if self._pending_state_dict is not None and "random_state" in state_dict and trainer.world_size == 1:
                restore_random_state(trainer, state_dict["random_state"], pl_module.device)
            self._pending_state_dict = None
        if not getattr(trainer, "fast_dev_run", False):  # a run of one batch that only tries out the code
            self._tracker.check_collection()

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Keep the running statistics of frozen normalization layers; a callback may freeze others in each epoch."""
        self._frozen_norms.close()  # of a batch that a hook skipped
        self._frozen_norms.enter_context(freeze_norm_statistics(pl_module, trainer.optimizers[0]))

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put these layers in the mode that they had."""
        self._frozen_norms.close()

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Remove micro-batches of an epoch that ended early."""
        self._record.clear()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint needs to resume training bit for bit."""
        if self._tracker is not None:
            random_state = RandomState.capture(self._tracker.steps.state.model).state_dict()
            return {**self._tracker.state_dict(), "random_state": random_state}
        return dict(self._pending_state_dict or {})

    def on_load_checkpoint(
        self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Note what a checkpoint is loaded for: to resume, or for an evaluation, of the trained module or another."""
        tracker = self._tracker
        is_trained = tracker is not None and tracker.has_ended and tracker.steps.state.model in pl_module.modules()
        self._checkpoint_use = "resume" if trainer.state.fn == "fit" else "go back" if is_trained else "ignore"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint until training starts; after training, go back to it, as the weights do.

        So `trainer.test(ckpt_path="best")` makes the posterior that of the best checkpoint.
        """
        if self._checkpoint_use == "resume":
            self._pending_state_dict = state_dict
        elif self._checkpoint_use == "go back" and self._tracker is not None:
            self._tracker.go_back(state_dict)

    def make_posterior(
        self,
        likelihood: Likelihood,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        statistics_inputs: Sequence[Tensor] = (),
        train_loader: Any = None,
        info: Mapping[str, Any] | None = None,
    ) -> FittedPosterior:
        """The fitted posterior, independent of later training. A Laplace approximation computes its curvature here.

        If training was stopped before enough snapshots were collected, it is MAP, the trained network alone, and a
        warning says so.

        Args:
            likelihood: Turns the outputs of `forward` into predictions.
            transform: Applied to inputs before the network.
            statistics_inputs: Batches of training inputs, to re-estimate BatchNorm statistics of draws; if there are
                none, they are read from the loader.
            train_loader: Batches of (inputs, targets) for `forward`, without augmentation, for the curvature; None
                for those of training, in order.
            info: Plain data saved with the artefact.

        Raises:
            RuntimeError: Training has not started, or has not collected enough snapshots yet.
        """
        if self._tracker is None:
            raise RuntimeError("There is no posterior before training: call trainer.fit with this callback first.")
        return make_fitted_posterior(
            self._tracker,
            likelihood,
            flatness=self.flatness,
            transform=transform,
            statistics_inputs=statistics_inputs,
            loader=train_loader,
            info=info,
        )

    def _restore(self) -> None:
        self._record.clear()
        self._frozen_norms.close()
        self._method_overrides.close()

    def _wrap_training_step(self, training_step: Callable[..., Any], module: "LightningModule") -> Callable[..., Any]:
        @wraps(training_step)
        def recording_step(*args: Any, **kwargs: Any) -> Any:
            if is_single_pass((args, kwargs)):
                raise ValueError(
                    f"The batch of training_step of {type(module).__name__} is or has an iterator, whose values "
                    "cannot be repeated for a second gradient. Let the data loader return tensors, lists or "
                    "dictionaries."
                )
            args_before, kwargs_before = copy_batch((args, kwargs))
            micro_batch = MicroBatch(args_before, kwargs_before, RandomState.capture(module))
            output = training_step(*args, **kwargs)
            loss = extract_loss(output)
            self._record.micro_batches.append(micro_batch)
            self._record.losses.append(
                None if loss is None else loss.detach() / module.trainer.accumulate_grad_batches
            )
            return output

        return recording_step

    def _wrap_optimizer_step(
        self, training_step: Callable[..., Any], trainer: "Trainer", module: "LightningModule"
    ) -> Callable[..., None]:
        optimizer_step = module.optimizer_step

        @wraps(optimizer_step)
        def flat_optimizer_step(
            epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]
        ) -> None:
            if self not in vars(trainer)["callbacks"]:  # a search for a learning rate or batch size takes plain steps
                self._record.clear()
                optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
                return
            if (tracker := self._tracker) is None:  # a Trainer that starts no training takes no steps either
                raise RuntimeError("A step before the start of training: call trainer.fit with this callback.")
            tracker.check_parameters()
            zero_grad = partial(module.optimizer_zero_grad, epoch, batch_idx, optimizer)
            step = StepClosure(trainer, module, training_step, zero_grad, optimizer_closure, self._record)
            closure = self.flatness(step, module, tracker.progress)

            def compute_gradients() -> Tensor | None:
                with only_optimized(module, optimizer), tracker.offer_distribution():
                    return self._compute_gradients(closure, trainer, module)

            with tracker.steps.replace_optimizer_step(tracker.progress.step):
                optimizer_step(epoch, batch_idx, optimizer, compute_gradients)
            self._record.clear()
            tracker.advance()

        return flat_optimizer_step

    def _compute_gradients(self, closure: Closure, trainer: "Trainer", module: "LightningModule") -> Tensor | None:
        # The flatness perturbs in each process by its own part of the batch; the final gradient is averaged.
        strategy: Any = trainer.strategy
        is_distributed = "DDPStrategy" in get_class_names(strategy)
        with strategy.block_backward_sync() if is_distributed else nullcontext():
            loss = closure()
        if is_distributed:
            synchronize_gradients(module, () if self._tracker is None else self._tracker.steps.scales)
        return None if self._record.losses[-1] is None else loss  # None tells Lightning that the batch was skipped


def _to_finite_int(number: float | None) -> int | None:
    return int(number) if number is not None and 0 < number < float("inf") else None


explain_old_arguments(__name__)


def restore_random_state(trainer: "Trainer", random_state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on with the random numbers of a checkpoint.

    A shuffling loader draws its order before `on_train_start`; in a resumed epoch, after `on_train_epoch_start`.
    """
    RandomState.from_state_dict(random_state, device).restore()
    loop = trainer.fit_loop
    fetcher = getattr(loop, "_data_fetcher", None)
    if fetcher is not None and not loop.restarting:  # within an epoch
        iter(fetcher)  # makes the iterator of the loader anew
