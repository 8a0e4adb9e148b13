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
from flatbayes.core.buffers import evaluating
from flatbayes.core.randomness import unmoved
from flatbayes.core.weights import trainable
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.material import Held
from flatbayes.training.processes.launch import fabric_of, processes
from flatbayes.training.recipe import Recipe
from flatbayes.training.runs import Runs
from flatbayes.training.schedules import Constant
from flatbayes.training.watching.watch import Watch

STEPS, NETWORKS, EXAMPLES = 4, 2, 16
AGREEMENT, ROUNDING = 1e-6, 1e-12
"""Largest difference of the two ways, as a share of how far they went and of the values; in float64."""
FEW_FLOPS, FEW_WEIGHTS = 1e7, 5e4
"""Of one network, the operations of a forward pass on a batch and the trainable weights up to which a CPU was faster
with 5 and with 20 networks as one: there it spends more on calls than on work, and what a step touches stays in its
caches. A GPU, not measured, has more to spare."""


def chosen(runs: Runs, number: int) -> tuple[bool, str]:
    """Whether this number of runs is trained as one, and why not.

    Raises:
        ValueError: The recipe insists on it, and it does not work.
    """
    option = runs.recipe.members
    if option in ("one_by_one", "workers") or number == 1:
        return False, "not asked for" if number > 1 else "there is one run"
    with unmoved(None):
        reason = (_slower(runs) if option == "auto" else None) or obstacle(runs)
    if reason is not None and option == "together":
        raise ValueError(
            f"The {number} runs cannot be trained together: {reason}. Leave members at one_by_one, or choose auto."
        )
    return reason is None, reason or ""


def obstacle(runs: Runs) -> str | None:
    """Why runs cannot be trained as one; None if they can."""
    if runs.recipe.precision not in ("32-true", "64-true"):
        return f"stacked networks ignore autocast, and the precision is {runs.recipe.precision}"
    if runs.recipe.compile or runs.recipe.channels_last:
        return "stacked networks are neither compiled nor stored with channels last"
    if math.prod(processes(runs.recipe)) > 1:
        return "several processes train one network at a time"
    if not isinstance(runs.source, Held):
        return "a loader of your own gives one batch at a time, and every run needs its own"
    trial = replace(runs, recipe=_brief(runs.recipe))
    noise = Noise()
    try:
        one_by_one = [_tried(trial, [run], noise) for run in range(NETWORKS)]
        if noise.used:
            return "training uses random numbers (dropout, or a posterior with noise), which would be others together"
        together = _tried(trial, range(NETWORKS), Watch())
        starts = [trial.network(run).double().state_dict() for run in range(NETWORKS)]
    except Exception as error:  # whatever a user's own parts may raise when they see stacked tensors
        return _raised(f"a trial of {STEPS} steps", error)
    for [alone], state, start in zip(one_by_one, together, starts, strict=True):
        other = differing(state, alone, start)
        if other is not None:
            return f"a trial of {STEPS} steps ended in other {other} than one by one, by more than rounding"
    return None


def differing(one: State, other: State, start: dict[str, Tensor]) -> str | None:
    """What of two states is not the same up to rounding, relative to how far it is from the start.

    Args:
        one: A state.
        other: A state of the same posterior and network.
        start: The network's tensors before training, by name.
    """
    params = {name for name, _ in one.model.named_parameters()}
    tensors, others = one.model.state_dict(), other.model.state_dict()
    groups = {
        "weights": [(tensors[name], others[name], start[name]) for name in tensors if name in params],
        "buffers": [(tensors[name], others[name], start[name]) for name in tensors if name not in params],
        "statistics": [(x, other.statistics[name], torch.zeros_like(x)) for name, x in one.statistics.items()],
    }
    for kind, triples in groups.items():
        for mine, yours, begun in triples:
            allowed = AGREEMENT * _length(yours - begun) + ROUNDING * _length(yours)
            if not _length(mine - yours) <= allowed:
                return kind
    return None


class Noise(Watch):
    """Sees whether training uses random numbers of torch's global generator."""

    def __init__(self) -> None:
        self.used = False
        self._last: Tensor | None = None

    def begin(self, run: int, runs: int, total_steps: int) -> None:
        """Start afresh."""
        self._last = None

    def step(self, step: int, loss: Tensor, lr: float) -> None:
        """Compare the generator with what it was a step ago."""
        now = torch.get_rng_state()
        self.used = self.used or (self._last is not None and not torch.equal(now, self._last))
        self._last = now


@dataclass(frozen=True, eq=False)
class First:
    """A few batches of others, from as many passes as it takes.

    Attributes:
        batches: The others.
    """

    batches: TrainingBatches

    def __len__(self) -> int:
        """How few."""
        return STEPS

    @property
    def num_data(self) -> int:
        """Number of examples of the others."""
        return self.batches.num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """That of the others."""
        return self.batches.transform

    skips = False

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a trial is never gone on with."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batches, whatever the number."""
        return islice((batch for k in count() for batch in self.batches.epoch(k)), STEPS)


def _brief(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        epochs=1,
        batch_size=min(EXAMPLES, recipe.batch_size),
        schedule=Constant(),
        collect_from=0.0,
        collect_per_epoch=STEPS,
        precision="64-true",
        accelerator="cpu",
        devices=1,
        validations=0,
        validate_every=None,
    )


def _tried(trial: Runs, runs: Sequence[int], watch: Watch) -> list[State]:
    fabric = fabric_of(trial.recipe)
    job = trial.job(runs, fabric)
    job.batches = First(job.batches)
    watch.begin(runs[0], 1, STEPS)
    return job.train(fabric, watch)


def _slower(runs: Runs) -> str | None:
    if not isinstance(runs.source, Held):
        return None  # which is refused in any case
    network = runs.network(0)
    weights = sum(param.numel() for param in trainable(network))
    if weights > FEW_WEIGHTS:
        return f"a network has {weights} weights, and with more than {FEW_WEIGHTS:.0e} one by one is as fast"
    try:
        flops = _flops(network, runs.source.scale(runs.source.data.train.inputs[:1]))
    except Exception as error:  # as in the trial
        return _raised("a forward pass", error)
    work = flops * min(runs.recipe.batch_size, len(runs.source.data.train))
    if work > FEW_FLOPS:
        return f"a forward pass takes {work:.0e} operations, and with more than {FEW_FLOPS:.0e} one by one is as fast"
    return None


def _flops(network: nn.Module, inputs: Tensor) -> int:
    ready = inputs.to(next(network.parameters()).dtype)
    with evaluating(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(ready)
    return int(counter.get_total_flops())


def _raised(what: str, error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{what} raised {type(error).__name__}: {first_line.rstrip('.')}"


def _length(tensor: Tensor) -> float:
    return float(tensor.double().norm())
