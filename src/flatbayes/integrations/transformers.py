"""Mixin for sharpness-aware training with any Trainer of transformers, with any posterior that one run can train.

A Trainer passes the micro-batches of a step one by one. They are kept until the last one; then one closure runs all
of them, several times if the flatness needs several gradients. All micro-batches are read before the first is run, so
random numbers are drawn in the same order as without the mixin.

The step of the posterior replaces that of the optimizer, after the Trainer has clipped the gradient. A variational
posterior, which samples weights for every gradient, takes its whole step at the last micro-batch instead.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.components import resolve_component
from flatbayes.core.optional import require_package
from flatbayes.core.parameter_selection import ParameterSelection, only_optimized
from flatbayes.core.renames import explain_old_arguments
from flatbayes.flatness import Flatness, Plain
from flatbayes.integrations.answer_tokens import AnswerClassifier, find_answer_ids
from flatbayes.integrations.fitted_posteriors import make_fitted_posterior
from flatbayes.integrations.model_inputs import Logits, MainInput
from flatbayes.integrations.posterior_steps import freeze_norm_statistics, is_optimizer_step, synchronize_gradients
from flatbayes.integrations.tracker import TrainingTracker, copy_batch, is_single_pass
from flatbayes.integrations.tracker_config import TRACKER_FILE_NAME, load_tracker_state, make_tracker_config
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior

with require_package("transformers"):
    from accelerate.utils import DistributedType
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    from flatbayes.integrations.transformers_callback import TrackerCallback

__all__ = ["AnswerClassifier", "FlatTrainer", "FlatTrainerMixin", "Logits", "find_answer_ids"]

if TYPE_CHECKING:
    _TrainerBase = Trainer  # for mypy: the mixin calls methods of the Trainer that follows it
else:
    _TrainerBase = object

SUPPORTED_DISTRIBUTED_TYPES = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Kinds of distributed training in which every process holds all weights."""


class FlatTrainerMixin(_TrainerBase):
    """Mixin before a Trainer: sharpness-aware training, with a posterior.

    `class MyTrainer(FlatTrainerMixin, Seq2SeqTrainer)`; with the plain Trainer it is `FlatTrainer`. Overriding
    methods is the way in which transformers extends a Trainer; this is the only class of flatbayes that calls
    `super()`. With `load_best_model_at_end=True` the posterior is that of the best checkpoint, too.

    Args:
        args: Positional arguments of the Trainer.
        flatness: The flatness; None is `Plain()`, and needs a posterior.
        posterior: The posterior, which takes the steps with the optimizer of the Trainer; None is `MAP()`, the
            trained network alone, and needs a flatness.
        start_fraction: Fraction of training, or of each cycle, after which snapshots are collected.
        snapshots_per_epoch: Snapshots collected per epoch from then on; None is one, or in a short training as many
            as give ten in total.
        params: The trainable parameters that the posterior is over: a kind, or a list of name patterns.
        num_data: Number of labelled training examples; None counts those of a pass over the training data loader,
            from its sampler and batch size.
        num_cycles: Number of cycles of the learning rate of the scheduler; each ends with snapshots.
        kwargs: Keyword arguments of the Trainer.

    Raises:
        TypeError: There is neither a flatness nor a posterior.
        ValueError: An argument is out of range, the posterior does not go with the flatness or the precision or needs
            several training runs, or the weights are sharded.

    Examples:
        >>> from transformers import Seq2SeqTrainer
        >>> class FlatSeq2SeqTrainer(FlatTrainerMixin, Seq2SeqTrainer):
        ...     pass  # takes `flatness=` and `posterior=` beside the arguments of a Seq2SeqTrainer
    """

    def __init__(
        self,
        *args: Any,
        flatness: Flatness | None = None,
        posterior: Posterior | None = None,
        start_fraction: float = 0.7,
        snapshots_per_epoch: int | None = None,
        params: ParameterSelection = "all",
        num_data: int | None = None,
        num_cycles: int = 1,
        **kwargs: Any,
    ) -> None:
        if flatness is None and posterior is None:
            raise TypeError(
                f"{type(self).__name__} needs a flatness or a posterior, such as flatness=SAM(rho=0.05) and "
                "posterior=SWAG(rank=10). Without both it is the plain Trainer: flatness=Plain() says so."
            )
        self.flatness = Plain() if flatness is None else resolve_component(flatness, Flatness, "flatness")
        self._tracker_config = make_tracker_config(
            posterior, start_fraction, snapshots_per_epoch, params, num_data, num_cycles
        )
        self._tracker: TrainingTracker | None = None
        self._resume_path: str | None = None
        self._micro_batches: list[dict[str, Any]] = []
        self._tensor_refusal: str | None = None  # of Logits
        super().__init__(*args, **kwargs)
        kind = self.accelerator.distributed_type
        if kind not in SUPPORTED_DISTRIBUTED_TYPES:
            raise ValueError(
                f"{kind.value} is not supported, since it may shard the weights; use one process, or DDP."
            )
        has_loss_scaler = getattr(self.accelerator, "scaler", None) is not None
        self._tracker_config.check_flatness(self.flatness, has_loss_scaler=has_loss_scaler)
        if has_loss_scaler and not is_optimizer_step(self._tracker_config.posterior):
            raise ValueError(
                f"{type(self._tracker_config.posterior).__name__} does more in a step than the optimizer, and with "
                "fp16 the Trainer leaves the step to a loss scaler. Use bf16; instead of a prior_precision, the "
                "weight decay of the optimizer can be the prior."
            )
        self.add_callback(TrackerCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; a checkpoint also restores the states of posterior and flatness.

        Raises:
            ValueError: The posterior does not go with the model or the optimizer, or the training collects too few
                snapshots to draw from.
            FileNotFoundError: The checkpoint was written by a Trainer without this mixin.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        self._resume_path = checkpoint
        if checkpoint and not (Path(checkpoint) / TRACKER_FILE_NAME).is_file():
            raise FileNotFoundError(
                f"{checkpoint} has no {TRACKER_FILE_NAME}: it was written without FlatTrainerMixin. Start from its "
                "weights instead."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_best_model(self) -> None:
        """Load the best checkpoint, with the state of the posterior at it (`load_best_model_at_end=True`)."""
        super()._load_best_model()
        path = Path(self.state.best_model_checkpoint or "") / TRACKER_FILE_NAME
        if self._tracker is not None and path.is_file():
            self._tracker.go_back(load_tracker_state(path))
        elif self._tracker is not None:
            warnings.warn(
                f"{path} is missing, so the weights are those of the best checkpoint, and the statistics of the "
                "posterior those of the last step. Train without load_best_model_at_end.",
                stacklevel=2,
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Record a micro-batch; at the last of a step, compute the gradient of the flatness over all of them.

        Returns the loss of the step at its last micro-batch, and zero before.
        """
        if is_single_pass(inputs):
            raise ValueError(
                "The batch of training_step is or has an iterator, whose values cannot be repeated for a second "
                "gradient. Let the data collator return tensors, lists or dictionaries."
            )
        if self._tensor_refusal is None and isinstance(inputs, Mapping):
            main_input = MainInput.from_model(self.accelerator.unwrap_model(model))
            self._tensor_refusal = main_input.explain_difference(inputs, self.label_names or ())
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        run_micro_batch = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)

        def closure() -> Tensor:
            model.zero_grad()
            total = torch.zeros((), device=self.args.device)
            for micro_batch in self._micro_batches:
                total += run_micro_batch(copy_batch(micro_batch))  # compute_loss may take it apart
            return total

        tracker = self._tracker
        if tracker is not None:
            tracker.check_parameters()
        with nullcontext() if self.optimizer is None else freeze_norm_statistics(model, self.optimizer):
            if tracker is None or tracker.config.posterior.uses_gradient_only:
                loss = self._compute_gradients(model, closure)
            else:
                step = tracker.progress.step
                loss = tracker.steps.step(lambda: self._compute_clipped_gradients(model, closure), step)
        self._micro_batches.clear()
        return loss

    def _compute_gradients(self, model: nn.Module, closure: Closure) -> Tensor:
        tracker = self._tracker
        progress, scales = (None, []) if tracker is None else (tracker.progress, tracker.steps.scales)
        is_distributed = self.accelerator.num_processes > 1
        # The flatness perturbs in each process by its own part of the batch; the final gradient is averaged.
        optimized = nullcontext() if self.optimizer is None else only_optimized(model, self.optimizer)
        offered = nullcontext() if tracker is None else tracker.offer_distribution()
        with self.accelerator.no_sync(model) if is_distributed else nullcontext(), optimized, offered:
            loss = self.flatness(closure, self.accelerator.unwrap_model(model), progress)()
        if is_distributed:
            synchronize_gradients(model, scales)
        return loss

    def _compute_clipped_gradients(self, model: nn.Module, closure: Closure) -> Tensor:
        loss = self._compute_gradients(model, closure)
        if self.args.max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        return loss

    def make_posterior(
        self,
        likelihood: Likelihood,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        statistics_inputs: Sequence[Tensor] = (),
        train_loader: Any = None,
        info: Mapping[str, Any] | None = None,
    ) -> FittedPosterior:
        """The fitted posterior, independent of later training. A Laplace approximation computes its curvature here.

        If training was stopped before enough snapshots were collected, it is MAP, the trained network alone, and a
        warning says so.

        Args:
            likelihood: Turns logits into predictions.
            wrap: Makes a network that takes a tensor, or a dictionary of them, and returns logits out of the model;
                None is `Logits`.
            statistics_inputs: Batches of training inputs, to re-estimate BatchNorm statistics of draws; if there are
                none, they are read from the loader.
            train_loader: Batches of inputs with labels, without augmentation, for the curvature; None for those of
                training, in order.
            info: Plain data saved with the artefact.

        Raises:
            RuntimeError: Training has not started, or has not collected enough snapshots yet.
        """
        if self._tracker is None:
            raise RuntimeError("There is no posterior before training: call train() first.")
        wrap_model = self._make_logits if wrap is None else wrap
        return make_fitted_posterior(
            self._tracker,
            likelihood,
            flatness=self.flatness,
            wrap=lambda model: wrap_model(_remove_autocast_wrapper(model)),
            statistics_inputs=statistics_inputs,
            loader=train_loader,
            info=info,
        )

    def _make_logits(self, model: nn.Module) -> Logits:
        logits = Logits(model)
        logits.tensor_refusal = self._tensor_refusal
        return logits


class FlatTrainer(FlatTrainerMixin, Trainer):
    """The Trainer of transformers, sharpness-aware and with a posterior: see `FlatTrainerMixin`.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> settings = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForSequenceClassification(settings)
        >>> sentences = [{"input_ids": torch.arange(1, 6), "labels": k % 2} for k in range(12)]
        >>> arguments = TrainingArguments("runs", max_steps=10, use_cpu=True, disable_tqdm=True)
        >>> trainer = FlatTrainer(
        ...     model, arguments, train_dataset=sentences, flatness=SAM(), posterior=SWAG(rank=2)
        ... )
        >>> output = trainer.train()
        {'train_runtime': ...}
        >>> tokens = {"input_ids": torch.arange(1, 6)[None]}
        >>> trainer.make_posterior(Categorical(2)).predict(tokens).mean.shape
        torch.Size([1, 2])
    """


def _remove_autocast_wrapper(model: nn.Module) -> nn.Module:
    # Accelerate wraps the forward of the trained model in autocast; predictions use full precision.
    if vars(model).pop("_original_forward", None) is not None:
        vars(model).pop("forward", None)
    return model


explain_old_arguments(__name__)
