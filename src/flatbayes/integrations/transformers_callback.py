"""Callback of `FlatTrainerMixin`: it starts, advances and saves the tracker of a training."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flatbayes.core import TrainingProgress
from flatbayes.integrations.posterior_steps import override_methods
from flatbayes.integrations.tracker import TrainingTracker, count_optimizer_steps
from flatbayes.integrations.tracker_config import TRACKER_FILE_NAME, load_tracker_state, save_tracker_state

if TYPE_CHECKING:
    from flatbayes.integrations.transformers import FlatTrainerMixin


class TrackerCallback(TrainerCallback):
    """Callback that advances and saves the tracker of the mixin."""

    def __init__(self, trainer: "FlatTrainerMixin") -> None:
        self.trainer = trainer
        self.replaced_step = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the tracker, or resume it."""
        trainer = self.trainer
        trainer._micro_batches.clear()
        progress = TrainingProgress(step=state.global_step, total_steps=state.max_steps)
        model = trainer.accelerator.unwrap_model(trainer.model)
        config = trainer._tracker_config
        try:
            num_batches = len(kwargs["train_dataloader"])
        except TypeError:
            steps_per_epoch = None
        else:
            steps_per_epoch = count_optimizer_steps(num_batches, args.gradient_accumulation_steps)
        tracker = TrainingTracker.start_tracking(
            config,
            model,
            _unwrap_optimizer(trainer.optimizer),
            progress,
            steps_per_epoch,
            config.count_examples(kwargs["train_dataloader"]),
            kwargs["train_dataloader"],
            mixed_precision="TrainingArguments(bf16=True)",
        )
        trainer._tracker = tracker
        if trainer._resume_path is not None:
            tracker.load_state_dict(load_tracker_state(Path(trainer._resume_path) / TRACKER_FILE_NAME))
        tracker.check_collection()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the micro-batches of an epoch that ended early."""
        self.trainer._micro_batches.clear()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the posterior take the step of the optimizer."""
        tracker = self.trainer._tracker
        if tracker is None:
            return
        if tracker.config.posterior.uses_gradient_only:
            context = tracker.steps.replace_optimizer_step(tracker.progress.step)
        else:  # the last micro-batch has taken the step
            context = override_methods(_unwrap_optimizer(self.trainer.optimizer), step=lambda closure=None: None)
        self.replaced_step.enter_context(context)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the optimizer its step back."""
        self.replaced_step.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the layers, and warn if too few snapshots have been collected."""
        if self.trainer._tracker is not None:
            self.trainer._tracker.finish_training()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, and collect a snapshot if one is due."""
        if self.trainer._tracker is not None:
            self.trainer._tracker.advance()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state of the tracker beside the checkpoint."""
        if args.should_save and self.trainer._tracker is not None:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_tracker_state(folder / TRACKER_FILE_NAME, self.trainer._tracker.state_dict())


def _unwrap_optimizer(optimizer: Any) -> Optimizer:
    wrapped: Optimizer = getattr(optimizer, "optimizer", optimizer)  # that of accelerate has the user's inside
    return wrapped
