"""Decide whether the members of an ensemble are vectorized: if it is requested, works, and with `auto` is faster.

Whether it works is measured rather than derived from types: two members take a few steps in float64 on the CPU,
vectorized and one by one, and must end in the same weights, buffers and statistics. This covers posteriors,
flatnesses, optimizers and networks of users, and finds what cannot be vectorized before training starts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatbayes.core import State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.weights import trainable_parameters
from flatbayes.training.batches import StatelessBatches, TrainingBatches
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData
from flatbayes.training.distributed.launch import get_process_layout, make_fabric
from flatbayes.training.fabric import FULL_PRECISIONS
from flatbayes.training.loop import train
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.schedules import Constant
from flatbayes.training.session import make_session

NUM_TRIAL_STEPS, NUM_TRIAL_NETWORKS, TRIAL_BATCH_SIZE = 4, 2, 16
RELATIVE_TOLERANCE, ROUNDING_TOLERANCE = 1e-6, 1e-12
"""Largest difference in float64, relative to the distance from the initial values and to the values."""
MAX_VECTORIZED_FLOPS, MAX_VECTORIZED_PARAMETERS = 1e7, 5e4
"""Largest number of operations of a forward pass on a batch, and of trainable weights, of one network with which
vectorized training of 5 and of 20 networks was faster on a CPU. Not measured on GPUs, where the limits are higher."""


def should_vectorize(factory: RunFactory, num_members: int) -> tuple[bool, str]:
    """Whether the members are vectorized, and the reason if they are not.

    Raises:
        ValueError: The configuration requires it, and it does not work.
    """
    option = factory.config.distribution.members
    if option in ("one_by_one", "workers") or num_members == 1:
        return False, "not requested" if num_members > 1 else "there is one member"
    with preserve_rng(None):
        reason = _find_no_speedup_reason(factory) if option == "auto" else None
        reason = reason or find_vectorization_obstacle(factory)
    if reason is not None and option == "vectorized":
        raise ValueError(
            f"The {num_members} members cannot be vectorized: {reason}. Leave distribution.members at one_by_one, or "
            "choose auto."
        )
    return reason is None, reason or ""


def find_vectorization_obstacle(factory: RunFactory) -> str | None:
    """The reason why members cannot be vectorized; None if they can."""
    config = factory.config
    if config.precision.mode not in FULL_PRECISIONS:
        return f"vectorized networks ignore autocast, and the precision is {config.precision.mode}"
    if config.precision.compile or config.precision.channels_last:
        return "vectorized networks are neither compiled nor stored with channels last"
    if config.stops_early and factory.training_data.has_validation:
        return "early stopping ends the training of each member at an epoch of its own (early_stopping)"
    if math.prod(get_process_layout(config)) > 1:
        return "several processes train one network at a time"
    if not isinstance(factory.training_data, InMemoryData):
        return "a loader of your own gives one batch at a time, and every member needs its own"
    trial = replace(factory, config=_make_trial_config(config))
    detector, members = RNGUsageDetector(), range(NUM_TRIAL_NETWORKS)
    try:
        one_by_one = [train_few_steps(trial, [member], detector)[0] for member in members]
        if detector.uses_rng:
            return "training uses random numbers (dropout, or a posterior with noise), which vectorized would differ"
        vectorized = train_few_steps(trial, members, Callback())
        initial = [trial.init_network(member).double().state_dict() for member in members]
    except Exception as error:  # whatever a user's components raise for stacked tensors
        return _format_exception(f"a trial of {NUM_TRIAL_STEPS} steps", error)
    for state, reference, initial_tensors in zip(vectorized, one_by_one, initial, strict=True):
        kind = find_state_difference(state, reference, initial_tensors)
        if kind is not None:
            return f"a trial of {NUM_TRIAL_STEPS} steps ended in other {kind} than one by one, by more than rounding"
    return None


def find_state_difference(state: State, reference: State, initial_tensors: dict[str, Tensor]) -> str | None:
    """The kind of tensors that differ by more than rounding: weights, buffers or statistics; None if none does."""
    params = {name for name, _ in state.model.named_parameters()}
    tensors, expected = state.model.state_dict(), reference.model.state_dict()
    groups = {
        "weights": [(tensors[name], expected[name], initial_tensors[name]) for name in tensors if name in params],
        "buffers": [(tensors[name], expected[name], initial_tensors[name]) for name in tensors if name not in params],
        "statistics": [(x, reference.statistics[name], torch.zeros_like(x)) for name, x in state.statistics.items()],
    }
    for kind, triples in groups.items():
        for actual, target, initial in triples:
            error, distance, size = (float(x.double().norm()) for x in (actual - target, target - initial, target))
            if not error <= RELATIVE_TOLERANCE * distance + ROUNDING_TOLERANCE * size:
                return kind
    return None


class RNGUsageDetector(Callback):
    """Detects whether training draws random numbers from torch's global generator."""

    def __init__(self) -> None:
        self.uses_rng = False
        self._last_state: Tensor | None = None

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Forget the state of the generator."""
        self._last_state = None

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Compare the state of the generator with that of the last step."""
        state = torch.get_rng_state()
        self.uses_rng = self.uses_rng or (self._last_state is not None and not torch.equal(state, self._last_state))
        self._last_state = state


@dataclass(frozen=True, eq=False)
class TruncatedBatches(StatelessBatches):
    """The first `NUM_TRIAL_STEPS` batches, from as many epochs as needed."""

    batches: TrainingBatches

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return NUM_TRIAL_STEPS

    @property
    def num_data(self) -> int:
        """Number of training examples."""
        return self.batches.num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """Transform that is still to be applied to inputs."""
        return self.batches.transform

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batches, the same in every epoch."""
        return islice((batch for k in count() for batch in self.batches.iter_epoch(k)), NUM_TRIAL_STEPS)


def train_few_steps(factory: RunFactory, members: Sequence[int], callback: Callback) -> list[State]:
    """Train on the first few batches, without checkpoints; return the state of each member."""
    session = make_session(factory.config, make_fabric(factory.config), CheckpointManager(), 0)
    run = factory.create_run(members, session.fabric)
    callback.on_run_start(members[0], 1, NUM_TRIAL_STEPS)
    return train(replace(run, batches=TruncatedBatches(run.batches)), session, callback)


def _make_trial_config(config: TrainingConfig) -> TrainingConfig:
    return config.with_options(
        epochs=1,
        batch_size=min(TRIAL_BATCH_SIZE, config.batch_size),
        schedule=Constant(),
        num_validations=0,
        validate_every_n_epochs=None,
        collection={"start_fraction": 0.0, "snapshots_per_epoch": NUM_TRIAL_STEPS},
        precision={"mode": "64-true", "channels_last": False},
        distribution={"accelerator": "cpu", "devices": 1},
    )


def _find_no_speedup_reason(factory: RunFactory) -> str | None:
    if not isinstance(factory.training_data, InMemoryData):
        return None  # refused in any case
    data, network = factory.training_data, factory.init_network(0)
    num_weights = sum(param.numel() for param in trainable_parameters(network))
    advice = "one by one is as fast"
    if num_weights > MAX_VECTORIZED_PARAMETERS:
        return f"a network has {num_weights} weights, and with more than {MAX_VECTORIZED_PARAMETERS:.0e} {advice}"
    try:
        num_flops = _count_flops(network, data.standardize(data.splits.train.inputs[:1]))
    except Exception as error:  # whatever a user's network raises
        return _format_exception("a forward pass", error)
    num_flops *= min(factory.config.batch_size, len(data.splits.train))
    if num_flops > MAX_VECTORIZED_FLOPS:
        return (
            f"a forward pass takes {num_flops:.0e} operations, and with more than {MAX_VECTORIZED_FLOPS:.0e} {advice}"
        )
    return None


def _count_flops(network: nn.Module, inputs: Tensor) -> int:
    inputs = cast_inputs(network, inputs)
    with eval_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(inputs)
    return int(counter.get_total_flops())


def _format_exception(action: str, error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{action} raised {type(error).__name__}: {first_line.rstrip('.')}"
