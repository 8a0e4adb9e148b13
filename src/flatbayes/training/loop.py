"""Training loop for every posterior and every flatness.

    for each batch:
        closure = gradient of the loss of the batch, accumulated over micro-batches
        closure = flatness(closure): gradient at perturbed weights
        posterior.step(closure): step of an optimizer or sampler
        posterior.collect(): snapshot of the weights, late in training

Devices, processes and checkpoints are those of a `Session`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatbayes.core import State
from flatbayes.core.buffers import clone_buffers, find_updated_buffers, set_training_mode
from flatbayes.core.devices import move_tensor
from flatbayes.core.input_trees import ModelInputs, map_tensors
from flatbayes.core.networks import shared_dtype
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.closure import BatchClosure, clip_closure
from flatbayes.training.config import TrainingConfig
from flatbayes.training.early_stopping import list_validation_epochs
from flatbayes.training.engine import Engine
from flatbayes.training.graph_capture import GraphedFlatness, record_cuda_graph
from flatbayes.training.identity import describe_name
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import Session

MAX_PLAUSIBLE_NLL = 1e3
"""Mean negative log likelihood in nats above which a training has diverged: 14 is a guess among a million classes."""


class DivergenceWarning(UserWarning):
    """The loss at the end of a training is finite, and so large that the training has diverged.

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("error", DivergenceWarning)  # stop where `fit` would only warn
        >>> fitted = fit(MLP, data, MAP(), config=config)
    """


@torch.enable_grad()  # also within the no_grad of a caller
def train(run: TrainingRun, session: Session, callback: Callback) -> list[State]:
    """Train a run to its end, from the last checkpoint if there is one.

    Returns:
        The state of each network.

    Raises:
        RuntimeError: The loss is not finite.
        OSError: A checkpoint cannot be written.
    """
    config, posterior, status, progress = run.config, run.leader.posterior, run.status, run.status.progress
    steps_per_epoch = len(run.batches)
    with session.open(run, callback) as (engine, state):
        flatness = session.distribute(run.flatness, engine)
        if config.precision.cuda_graph:
            flatness = GraphedFlatness(flatness, record_cuda_graph)
        while status.completed_epochs < (config := run.current_config).num_epochs:
            epoch, total_steps = status.completed_epochs, config.num_epochs * steps_per_epoch
            validates = epoch + 1 in list_validation_epochs(config, steps_per_epoch)
            set_training_mode(engine.module)
            buffers = clone_buffers(engine.module)
            for inputs, targets in iter_batches(run, engine, epoch):
                lr = engine.set_learning_rate(config.schedule.factor(progress.step, total_steps))
                closure = BatchClosure(run, engine, inputs, targets)
                flat_closure = flatness(closure, engine.module, progress)  # the two axes meet here
                loss = posterior.step(state, clip_closure(flat_closure, engine, config))
                run.collect(progress.step)
                status.loss_sum = status.loss_sum + loss
                progress.advance()
                callback.on_step_end(progress.step, loss.mean() if loss.ndim else loss, lr)
                if progress.step % steps_per_epoch:
                    session.save_checkpoint(run, engine, epoch_ended=False)
            state.updated_buffers = find_updated_buffers(engine.module, buffers)
            session.synchronize_buffers(engine.module, state.updated_buffers)
            for record in finish_epoch(run, engine, lr, validate=validates):
                callback.on_epoch_end(record)
            if validates and session.stop_early(run, engine):
                callback.on_rollback(status.records, progress.total_steps or 0)
            session.save_checkpoint(run, engine, epoch_ended=True)
    session.gather(run, state)
    for branch in run.followers:
        branch.get_state().updated_buffers = state.updated_buffers
    status.is_trained = True
    return run.states


def iter_batches(run: TrainingRun, engine: Engine, epoch: int) -> Iterator[tuple[ModelInputs, Tensor]]:
    """The remaining batches of an epoch, transformed and in the dtype and layout of training, on its device."""
    first_batch = run.status.progress.step - epoch * len(run.batches)
    dtype = shared_dtype(engine.module.parameters())
    for inputs, targets in run.batches.iter_epoch(epoch, first_batch):
        inputs = map_tensors(lambda tensor: start_transfer(tensor, engine.device), inputs)
        targets = start_transfer(targets, engine.device)
        if run.batches.transform is not None:
            inputs = run.batches.transform(inputs)
        inputs = convert_inputs(inputs, dtype, run.config)
        yield inputs, targets


def start_transfer(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host does not wait for the copy.

    Memory of the host is pinned first: from other memory, CUDA would copy after all kernels that were started before,
    and let the host wait.
    """
    if device.type == "cuda" and tensor.is_cpu and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return move_tensor(tensor, device, non_blocking=True)


def convert_inputs(inputs: ModelInputs, dtype: torch.dtype | None, config: TrainingConfig) -> Any:
    """Inputs in the precision and memory layout of training.

    Without a dtype, as for a network with several, inputs keep theirs.
    """

    def convert(tensor: Tensor) -> Tensor:
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if config.precision.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return map_tensors(convert, inputs)


def finish_epoch(run: TrainingRun, engine: Engine, lr: float, *, validate: bool) -> Iterable[Record]:
    """Record mean loss and validation metrics of an epoch, one record per network.

    Raises:
        RuntimeError: The mean loss is not finite, or the validation loss after the last epoch is not a number.
    """
    status, config = run.status, run.current_config
    epoch = status.completed_epochs + 1
    mean_losses = torch.as_tensor(status.loss_sum / len(run.batches)).reshape(-1).tolist()
    for member, mean_loss in enumerate(mean_losses):
        if not math.isfinite(mean_loss):
            raise RuntimeError(_format_divergence(run, engine, "loss", mean_loss, member, epoch))
    status.completed_epochs, status.loss_sum = epoch, 0.0
    metrics: Sequence[Mapping[str, float]] = [{}] * run.num_networks
    if validate and run.validate is not None:
        metrics = run.validate(engine.module)
    for member, mean_loss in enumerate(mean_losses):
        record: Record = {} if run.num_networks == 1 else {"member": member}
        record |= {"epoch": epoch, "step": status.progress.step, "loss": mean_loss, "lr": lr, **metrics[member]}
        status.records.append(record)
        yield record
        if epoch == config.num_epochs and math.isnan(metrics[member].get("val_nll", 0.0)):
            raise RuntimeError(_format_divergence(run, engine, "validation loss", math.nan, member, epoch))
        if epoch == config.num_epochs and run.loss_is_nll:
            largest = max(mean_loss, metrics[member].get("val_nll", mean_loss))
            if largest > MAX_PLAUSIBLE_NLL:
                owner, remedies = _format_owner(run, member), _list_remedies(run, engine)
                text = (
                    f"The training{owner} has probably diverged: its mean negative log likelihood is {largest:.3g} "
                    f"at the end, so the predictions are worthless. Try {remedies}."
                )
                warnings.warn(text, category=DivergenceWarning, stacklevel=2)


def _format_divergence(run: TrainingRun, engine: Engine, quantity: str, value: float, member: int, epoch: int) -> str:
    place = f"{_format_owner(run, member)} is {value} in epoch {epoch} of {run.config.epochs}"
    return f"The {quantity}{place}. Try {_list_remedies(run, engine)}."


def _format_owner(run: TrainingRun, member: int) -> str:
    return "" if run.num_networks == 1 else f" of member {member + 1}"


def _list_remedies(run: TrainingRun, engine: Engine) -> str:
    """What may end a divergence and is not in force, with the present values."""
    radius, clip_norm, mode = run.flatness.radius, run.config.optimization.clip_norm, run.config.precision.mode
    remedies = [f"a lower learning rate (now {engine.base_lrs[0]:g})"]
    if any(param.dtype == torch.float16 for param in engine.module.parameters()):
        remedies.insert(0, "weights of float32, model.float() (some are float16, which overflows above 65504)")
    data_change = run.suggest_data_change()
    if data_change is not None:
        remedies.insert(0, data_change)
    if radius:
        remedies.append(f"a smaller radius (now {describe_name(run.flatness.with_radius(radius))})")
    if clip_norm is None:
        remedies.append("clipping (--optimization.clip_norm 1)")
    elif clip_norm != "auto":
        remedies.append(f"a smaller --optimization.clip_norm (now {clip_norm:g})")
    if mode.endswith("mixed"):
        remedies.append(f"--precision.mode 32-true (now {mode})")
    return ", ".join(remedies[:-1]) + f" or {remedies[-1]}"
