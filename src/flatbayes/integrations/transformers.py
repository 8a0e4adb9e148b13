"""transformers: a mixin that makes any Trainer sharpness-aware, and collects SWAG.

A Trainer hands over the micro-batches of a step one after the other. They are kept until the last is there; then one
closure runs them all, as often as the flatness asks. Random numbers are used up as by the Trainer itself, since all
of them are read before the first.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import TrainingProgress
from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package
from flatbayes.core.parameter_selection import ParameterSelection
from flatbayes.flatness import Flatness, Plain
from flatbayes.integrations.allreduce import synchronize_gradients
from flatbayes.integrations.tracker import CollectionConfig, TrainingTracker, count_examples, count_optimizer_steps
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior

with require_package("transformers"):
    from accelerate.utils import DistributedType
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

if TYPE_CHECKING:
    _TrainerBase = Trainer  # what the mixin is put before
else:
    _TrainerBase = object

TRACKER_FILE_NAME = "flatbayes.safetensors"
"""What is ours in the folder of a checkpoint."""

SUPPORTED_DISTRIBUTED_TYPES = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Ways of running in which every process has all weights."""


class FlatTrainerMixin(_TrainerBase):
    """Put before a Trainer of transformers, makes its training sharpness-aware and collects SWAG along the way.

    `class MyTrainer(FlatTrainerMixin, Seq2SeqTrainer)`; with the plain one it is `FlatTrainer`. A Trainer is made to
    be changed by overriding its methods; so this is the one class of flatbayes that calls `super()`.

    Args:
        args: What the Trainer takes.
        flatness: Where gradients are asked for.
        swag: How iterates are collected; None for the trained network alone.
        collect_from: Share of training after which iterates are collected.
        collect_per_epoch: Iterates an epoch from then on.
        params: The trainable parameters that the posterior is over: a kind, or a list of name patterns.
        num_data: Number of training examples; None asks the training data.
        kwargs: What the Trainer takes by name.

    Raises:
        ValueError: One of them is out of range, `swag` has a prior of its own, or weights are split over processes.
    """

    def __init__(
        self,
        *args: Any,
        flatness: Flatness = Plain(),
        swag: SWAG | None = None,
        collect_from: float = 0.7,
        collect_per_epoch: int = 1,
        params: ParameterSelection = "all",
        num_data: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.flatness = flatness
        self._collection_config = CollectionConfig(swag, collect_from, collect_per_epoch, params, num_data)
        self._tracker: TrainingTracker | None = None
        self._resume_path: str | None = None
        self._micro_batches: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)
        kind = self.accelerator.distributed_type
        if kind not in SUPPORTED_DISTRIBUTED_TYPES:
            raise ValueError(
                f"{kind.value} splits the weights over processes, or is not known here; use one, or DDP."
            )
        self.add_callback(_TrackerCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer does; a checkpoint also gives back what was collected, and what the flatness remembers.

        Raises:
            FileNotFoundError: The checkpoint is that of a Trainer without this mixin.
        """
        found = resume_from_checkpoint or None
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        self._resume_path = found
        if found and not (Path(found) / TRACKER_FILE_NAME).is_file():
            raise FileNotFoundError(
                f"{found} has no {TRACKER_FILE_NAME}: it was written without FlatTrainerMixin. Start from its weights instead."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Keep the micro-batch; at the last of a step, the gradient that the flatness wants, of all of them.

        Returns:
            The loss of the step, or zero as long as there is more to come.
        """
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        one_step = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)

        def closure() -> Tensor:
            model.zero_grad()
            total = torch.zeros((), device=self.args.device)
            for micro_batch in self._micro_batches:
                total += one_step(micro_batch)
            return total

        course = None if self._tracker is None else self._tracker.progress
        ranks = self.accelerator.num_processes
        # Each process looks for its own worst point; what it finds there is averaged.
        with self.accelerator.no_sync(model) if ranks > 1 else nullcontext():
            loss = self.flatness(closure, self.accelerator.unwrap_model(model), course)()
        if ranks > 1:
            synchronize_gradients(model)
        self._micro_batches.clear()
        return loss

    def make_posterior(
        self,
        likelihood: Likelihood,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        statistics_inputs: Sequence[Tensor] = (),
        info: Mapping[str, Any] | None = None,
    ) -> FittedPosterior:
        """What was fitted, ready to predict; later training leaves it alone.

        Args:
            likelihood: Makes predictions out of logits.
            wrap: Makes a network that takes one tensor and returns logits out of the model; None is `Logits`.
            statistics_inputs: Batches of training inputs, on which running statistics of draws are estimated.
            info: Plain data that travels with the artefact.

        Raises:
            RuntimeError: Nothing was trained yet.
        """
        if self._tracker is None:
            raise RuntimeError("There is no posterior before training: call train() first.")
        make = Logits if wrap is None else wrap
        return self._tracker.make_posterior(
            likelihood, lambda model: make(_remove_autocast_wrapper(model)), None, statistics_inputs, info
        )


class FlatTrainer(FlatTrainerMixin, Trainer):
    """The Trainer of transformers, sharpness-aware and with SWAG: see `FlatTrainerMixin`."""


class Logits(nn.Module):
    """A model of transformers as a network that takes one tensor and returns its logits.

    What attention may look at is told from the inputs: everything but padding. A model that needs more than this (two
    segments of a text, say) needs a small module of your own in its place.

    Args:
        model: A model whose output has `logits`.
        pad_token_id: The token that fills up a text; None asks the model's configuration, and there is no mask if
            that has none, as for images.
    """

    def __init__(self, model: nn.Module, pad_token_id: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.input_name = getattr(model, "main_input_name", "input_ids")
        self.pad_token_id: int | None = (
            getattr(model.config, "pad_token_id", None) if pad_token_id is None else pad_token_id
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits for token numbers of shape (batch, length), or for whatever the model's main input is."""
        given = {self.input_name: inputs}
        if self.input_name == "input_ids" and self.pad_token_id is not None:
            given["attention_mask"] = inputs.ne(self.pad_token_id).long()
        logits: Tensor = self.model(**given).logits
        return logits


class _TrackerCallback(TrainerCallback):
    """Follows the Trainer's training on behalf of the mixin."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer._micro_batches.clear()
        course = TrainingProgress(step=state.global_step, total_steps=state.max_steps)
        model = trainer.accelerator.unwrap_model(trainer.model)
        num_data = count_examples(trainer._collection_config, trainer.train_dataset)
        steps = _count_steps_per_epoch(kwargs["train_dataloader"], args.gradient_accumulation_steps)
        trainer._tracker = TrainingTracker.start_tracking(trainer._collection_config, model, course, steps, num_data)
        if trainer._resume_path is not None:
            trainer._tracker.load_state_dict(_load_tracker_state(Path(trainer._resume_path) / TRACKER_FILE_NAME))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._micro_batches.clear()  # of an epoch that was left early

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._tracker.advance()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            _save_tracker_state(folder / TRACKER_FILE_NAME, self.trainer._tracker.state_dict())


def _remove_autocast_wrapper(model: nn.Module) -> nn.Module:
    # Accelerate has put autocast around this one model's forward for training; predictions are in full precision.
    if vars(model).pop("_original_forward", None) is not None:
        vars(model).pop("forward", None)
    return model


def _count_steps_per_epoch(dataloader: Any, accumulation_steps: int) -> int | None:
    try:
        return count_optimizer_steps(len(dataloader), accumulation_steps)
    except TypeError:
        return None


def _save_tracker_state(path: Path, state_dict: Mapping[str, Any]) -> None:
    course = dict(state_dict["course"])
    tensors = {f"kept.{name}": tensor for name, tensor in course.pop("flatness_state").items()}
    tensors |= {f"statistics.{name}": tensor for name, tensor in state_dict["statistics"].items()}
    with atomic_write(path) as temporary:
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata={"course": json.dumps(course)})


def _load_tracker_state(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        course = json.loads(file.metadata()["course"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {
        "course": {**course, "flatness_state": _select_by_prefix(tensors, "kept.")},
        "statistics": _select_by_prefix(tensors, "statistics."),
    }


def _select_by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
