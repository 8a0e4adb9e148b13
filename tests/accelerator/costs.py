"""Launches and waits on the pretend device: of a training step, a snapshot, a draw and a batch; and their budgets."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from accelerator.pretend_device import PretendDevice, pretend_device
from accelerator.training import (
    BATCH_SIZE,
    NUM_WARMUP_STEPS,
    count_measured_steps,
    fit_on_device,
    make_inputs,
)
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback

BUDGETS = Path(__file__).parent / "budgets.json"


@dataclass(frozen=True)
class Cost:
    """Launches and waits by place."""

    launches: Counter[str]
    waits: Counter[str]

    @staticmethod
    def of(launches: Mapping[str, float], waits: Mapping[str, float]) -> "Cost":
        """The cost of these counts by place."""
        return Cost(Counter(dict(launches)), Counter(dict(waits)))

    @staticmethod
    def read(device: PretendDevice) -> "Cost":
        """Everything that has reached a device so far."""
        return Cost(device.launches.copy(), device.waits.copy())

    def __sub__(self, other: "Cost") -> "Cost":
        return self.combine(other, -1)

    def __truediv__(self, number: float) -> "Cost":
        return Cost(*(scale_counts(counts, 1 / number) for counts in (self.launches, self.waits)))

    def combine(self, other: "Cost", factor: float) -> "Cost":
        """This cost and `factor` times another; places without any are left out."""
        pairs = ((self.launches, other.launches), (self.waits, other.waits))
        return Cost(*(add_counts(left, right, factor) for left, right in pairs))

    @property
    def totals(self) -> dict[str, float]:
        """Number of launches and of waits."""
        return {"launches": round(self.launches.total(), 2), "waits": round(self.waits.total(), 2)}

    def format_places(self) -> str:
        """A line for each place, the most expensive first."""
        lines = []
        for kind in ("waits", "launches"):
            counts: Counter[str] = getattr(self, kind)
            lines += [f"{count:8.1f} {kind} {place}" for place, count in counts.most_common() if abs(count) > 1e-6]
        return "\n".join(lines)


def add_counts(left: Counter[str], right: Counter[str], factor: float) -> Counter[str]:
    """Counts of the left and `factor` times those of the right."""
    return Counter({place: left[place] + factor * right[place] for place in left | right})


def scale_counts(counts: Counter[str], factor: float) -> Counter[str]:
    """All counts times a factor."""
    return Counter({place: factor * count for place, count in counts.items()})


@dataclass
class StepRecorder(Callback):
    """Keeps what has reached the device after every step."""

    device: PretendDevice
    costs: list[Cost] = field(default_factory=list)

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Keep the counts."""
        self.costs.append(Cost.read(self.device))


@dataclass(frozen=True)
class FitCost:
    """What training costs on the device.

    Attributes:
        step: A training step.
        snapshot: What a step with a snapshot costs more.
        fitted: The fitted posterior.
    """

    step: Cost
    snapshot: Cost
    fitted: FittedPosterior


def measure_fit(network: str, posterior: Posterior, flat: Flatness, **options: Any) -> FitCost:
    """Fit, and count.

    Args:
        network: One of `NETWORKS`.
        posterior: The posterior.
        flat: The flatness.
        options: As for `fit_on_device`.
    """
    with pretend_device() as device:
        recorder = StepRecorder(device)
        fitted = fit_on_device(network, posterior, flat, callback=recorder, **options)
    num_measured = count_measured_steps(flat)
    first, last = NUM_WARMUP_STEPS - 1, NUM_WARMUP_STEPS + num_measured - 1
    step = (recorder.costs[last] - recorder.costs[first]) / num_measured
    return FitCost(step, recorder.costs[-1] - recorder.costs[-2] - step, fitted)


def measure_prediction(network: str, fitted: FittedPosterior) -> dict[str, Cost]:
    """Cost of a draw the first time, with its BatchNorm statistics; of the same draw again; of another batch.

    Args:
        network: One of `NETWORKS`, which was fitted.
        fitted: The fitted posterior.
    """
    num_runs = len(fitted.states)

    def predict(num_draws: int, num_batches: int, seed: int) -> Cost:
        with pretend_device() as device:
            inputs = make_inputs(network, BATCH_SIZE * num_batches)
            fitted.predict(inputs, num_draws * num_runs, batch_size=BATCH_SIZE, seed=seed, vectorized=False)
        return Cost.read(device)

    predict(2, 1, seed=2)  # moves constants to the device once
    single, pair = predict(1, 1, seed=0), predict(2, 1, seed=1)
    single_again, pair_again = predict(1, 1, seed=0), predict(2, 1, seed=1)
    return {
        "first draw": (pair - single) / num_runs,
        "repeated draw": (pair_again - single_again) / num_runs,
        "batch": predict(1, 2, seed=0) - single_again,
    }


def read_budgets() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The committed numbers: what is counted, network and pair, then launches and waits."""
    budgets: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(BUDGETS.read_text(encoding="utf-8"))
    return budgets


def find_excess(what: str, cost: Cost, budget: dict[str, float]) -> str | None:
    """A message if a cost exceeds its budget, with the places that it comes from; None if it does not.

    Args:
        what: What was counted, for the message.
        cost: The cost.
        budget: Largest numbers of launches and waits.
    """
    totals = cost.totals
    exceeded = [
        f"{totals[kind]:g} {kind}, at most {budget[kind]:g}" for kind in totals if totals[kind] > budget[kind]
    ]
    if not exceeded:
        return None
    return (
        f"{what}: {'; '.join(exceeded)}. If more are needed, say why in the commit, and write the new numbers with "
        f"`python tests/accelerator/measure.py --write`. They come from:\n{cost.format_places()}"
    )
