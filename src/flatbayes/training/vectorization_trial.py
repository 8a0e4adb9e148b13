"""Whether the runs of a fit are trained as one: only if that is asked for, works and, if `auto`, is the faster way.

That it works is not read off from types but tried: two runs take a few steps in float64 on the CPU, as one and one
after the other, and must end in the same weights, buffers and statistics. So a posterior, a flatness, an optimiser or
a network of the user's own is judged as ours are, and what cannot be stacked is found before training begins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatbayes.core import State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.weights import trainable_parameters
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData
from flatbayes.training.distributed.launch import get_process_layout, make_fabric
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.schedules import Constant

NUM_TRIAL_STEPS, NUM_TRIAL_NETWORKS, TRIAL_BATCH_SIZE = 4, 2, 16
RELATIVE_TOLERANCE, ROUNDING_TOLERANCE = 1e-6, 1e-12
"""Largest difference of the two ways, as a share of how far they went and of the values; in float64."""
MAX_VECTORIZED_FLOPS, MAX_VECTORIZED_PARAMETERS = 1e7, 5e4
"""Of one network, the operations of a forward pass on a batch and the trainable weights up to which a CPU was faster
with 5 and with 20 networks as one: there it spends more on calls than on work, and what a step touches stays in its
caches. A GPU, not measured, has more to spare."""


def should_vectorize(factory: RunFactory, num_members: int) -> tuple[bool, str]:
    """Whether this number of runs is trained as one, and why not.

    Raises:
        ValueError: The recipe insists on it, and it does not work.
    """
    option = factory.config.distribution.members
    if option in ("one_by_one", "workers") or num_members == 1:
        return False, "not asked for" if num_members > 1 else "there is one run"
    with preserve_rng(None):
        reason = (_find_no_speedup_reason(factory) if option == "auto" else None) or find_vectorization_obstacle(
            factory
        )
    if reason is not None and option == "vectorized":
        raise ValueError(
            f"The {num_members} runs cannot be trained together: {reason}. Leave members at one_by_one, or choose auto."
        )
    return reason is None, reason or ""


def find_vectorization_obstacle(factory: RunFactory) -> str | None:
    """Why runs cannot be trained as one; None if they can."""
    if factory.config.precision.mode not in ("32-true", "64-true"):
        return f"stacked networks ignore autocast, and the precision is {factory.config.precision.mode}"
    if factory.config.precision.compile or factory.config.precision.channels_last:
        return "stacked networks are neither compiled nor stored with channels last"
    if math.prod(get_process_layout(factory.config)) > 1:
        return "several processes train one network at a time"
    if not isinstance(factory.training_data, InMemoryData):
        return "a loader of your own gives one batch at a time, and every run needs its own"
    trial = replace(factory, config=_make_trial_config(factory.config))
    noise = RNGUsageDetector()
    try:
        one_by_one = [_run_trial(trial, [run], noise) for run in range(NUM_TRIAL_NETWORKS)]
        if noise.uses_rng:
            return "training uses random numbers (dropout, or a posterior with noise), which would be others together"
        together = _run_trial(trial, range(NUM_TRIAL_NETWORKS), Callback())
        starts = [trial.init_network(run).double().state_dict() for run in range(NUM_TRIAL_NETWORKS)]
    except Exception as error:  # whatever a user's own parts may raise when they see stacked tensors
        return _format_exception(f"a trial of {NUM_TRIAL_STEPS} steps", error)
    for [alone], state, start in zip(one_by_one, together, starts, strict=True):
        other = find_state_difference(state, alone, start)
        if other is not None:
            return f"a trial of {NUM_TRIAL_STEPS} steps ended in other {other} than one by one, by more than rounding"
    return None


def find_state_difference(state: State, reference: State, initial_tensors: dict[str, Tensor]) -> str | None:
    """What of two states is not the same up to rounding, relative to how far it is from the start.

    Args:
        state: A state.
        reference: A state of the same posterior and network.
        initial_tensors: The network's tensors before training, by name.
    """
    params = {name for name, _ in state.model.named_parameters()}
    tensors, others = state.model.state_dict(), reference.model.state_dict()
    groups = {
        "weights": [(tensors[name], others[name], initial_tensors[name]) for name in tensors if name in params],
        "buffers": [(tensors[name], others[name], initial_tensors[name]) for name in tensors if name not in params],
        "statistics": [(x, reference.statistics[name], torch.zeros_like(x)) for name, x in state.statistics.items()],
    }
    for kind, triples in groups.items():
        for mine, yours, begun in triples:
            allowed = RELATIVE_TOLERANCE * _compute_norm(yours - begun) + ROUNDING_TOLERANCE * _compute_norm(yours)
            if not _compute_norm(mine - yours) <= allowed:
                return kind
    return None


class RNGUsageDetector(Callback):
    """Sees whether training uses random numbers of torch's global generator."""

    def __init__(self) -> None:
        self.uses_rng = False
        self._last_state: Tensor | None = None

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Start afresh."""
        self._last_state = None

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Compare the generator with what it was a step ago."""
        now = torch.get_rng_state()
        self.uses_rng = self.uses_rng or (self._last_state is not None and not torch.equal(now, self._last_state))
        self._last_state = now


@dataclass(frozen=True, eq=False)
class TruncatedBatches:
    """A few batches of others, from as many passes as it takes.

    Attributes:
        batches: The others.
    """

    batches: TrainingBatches

    def __len__(self) -> int:
        """How few."""
        return NUM_TRIAL_STEPS

    @property
    def num_data(self) -> int:
        """Number of examples of the others."""
        return self.batches.num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """That of the others."""
        return self.batches.transform

    can_skip_batches = False

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a trial is never gone on with."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batches, whatever the number."""
        return islice((batch for k in count() for batch in self.batches.iter_epoch(k)), NUM_TRIAL_STEPS)


def _make_trial_config(config: TrainingConfig) -> TrainingConfig:
    return config.with_options(
        epochs=1,
        batch_size=min(TRIAL_BATCH_SIZE, config.batch_size),
        schedule=Constant(),
        num_validations=0,
        validate_every_n_epochs=None,
        collection={"start_fraction": 0.0, "snapshots_per_epoch": NUM_TRIAL_STEPS},
        precision={"mode": "64-true"},
        distribution={"accelerator": "cpu", "devices": 1},
    )


def _run_trial(trial: RunFactory, members: Sequence[int], callback: Callback) -> list[State]:
    fabric = make_fabric(trial.config)
    job = trial.create_run(members, fabric)
    job.batches = TruncatedBatches(job.batches)
    callback.on_run_start(members[0], 1, NUM_TRIAL_STEPS)
    return job.train(fabric, callback)


def _find_no_speedup_reason(factory: RunFactory) -> str | None:
    if not isinstance(factory.training_data, InMemoryData):
        return None  # which is refused in any case
    network = factory.init_network(0)
    weights = sum(param.numel() for param in trainable_parameters(network))
    if weights > MAX_VECTORIZED_PARAMETERS:
        return f"a network has {weights} weights, and with more than {MAX_VECTORIZED_PARAMETERS:.0e} one by one is as fast"
    try:
        flops = _count_flops(
            network, factory.training_data.standardize(factory.training_data.splits.train.inputs[:1])
        )
    except Exception as error:  # as in the trial
        return _format_exception("a forward pass", error)
    work = flops * min(factory.config.batch_size, len(factory.training_data.splits.train))
    if work > MAX_VECTORIZED_FLOPS:
        return f"a forward pass takes {work:.0e} operations, and with more than {MAX_VECTORIZED_FLOPS:.0e} one by one is as fast"
    return None


def _count_flops(network: nn.Module, inputs: Tensor) -> int:
    ready = inputs.to(next(network.parameters()).dtype)
    with eval_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(ready)
    return int(counter.get_total_flops())


def _format_exception(action: str, error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{action} raised {type(error).__name__}: {first_line.rstrip('.')}"


def _compute_norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
