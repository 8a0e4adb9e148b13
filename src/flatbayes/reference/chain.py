"""One chain of a reference: descent to a mode, tuning, and sampling."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.hmc import DualAveraging, HMCPoint, hmc_step
from flatbayes.reference.mclmc import PhasePoint, Potential, StepSizeTuner, mclmc_step, start_chain

INITIAL_STEP_SIZE = 0.005
DESCENT_LR = 0.01
SCALE_ESTIMATE_START = 0.4
"""Fraction of the tuning after which the variances of the weights are estimated."""
NOT_FINITE_MESSAGE = "The potential is not finite around the initial weights: check the data and the network."


@dataclass(frozen=True)
class Chain:
    """The draws of a chain, and what describes its sampler.

    Attributes:
        positions: Weight vectors, evenly spaced, shape (draws, weights).
        potentials: U at every position that was visited after tuning.
        step_size: Tuned step size.
        decoherence_length: Tuned length over which MCLMC forgets its direction; NaN for HMC.
        energy_variance: Mean of dE^2 for each weight, of MCLMC; NaN for HMC.
        acceptance: Mean probability of acceptance of HMC; 1 for MCLMC, which has no test.
        num_divergent: Steps after tuning with an energy that was not finite; the chain stays where it was.
    """

    positions: Tensor
    potentials: list[float] = field(repr=False)
    step_size: float
    decoherence_length: float = math.nan
    energy_variance: float = math.nan
    acceptance: float = 1.0
    num_divergent: int = 0


@dataclass
class RunningVariance:
    """Sum of the variances of the entries of vectors, by Welford's method."""

    count: int = 0
    mean: Tensor | None = None
    total: float = 0.0

    def update(self, vector: Tensor) -> None:
        """Add a vector."""
        self.count += 1
        if self.mean is None:
            self.mean = vector.double()
            return
        difference = vector - self.mean
        self.mean = self.mean + difference / self.count
        self.total += float(difference @ (vector - self.mean))

    @property
    def sum_of_variances(self) -> float:
        """Sum over the entries; 0 for fewer than two vectors."""
        return self.total / (self.count - 1) if self.count > 1 else 0.0


def run_chain(
    potential: Potential,
    position: Tensor,
    config: ReferenceConfig,
    generator: torch.Generator,
    report: Callable[[], object] = lambda: None,
) -> Chain:
    """Descend, tune and sample.

    `report` is called after each step of the three phases; `count_steps` is the number of calls.

    Raises:
        RuntimeError: The energy is not finite at the mode, or after every step.
    """
    position = descend(potential, position, config.num_descent_steps, report)
    run = _run_mclmc if config.sampler == "mclmc" else _run_hmc
    return run(potential, position, config, generator, report)


def count_steps(config: ReferenceConfig) -> int:
    """Number of steps that `run_chain` reports."""
    if config.sampler == "mclmc":
        return config.num_descent_steps + config.num_tuning_steps + config.num_steps
    return config.num_descent_steps + _count_tuning_trajectories(config) + config.num_positions


def descend(
    potential: Potential, position: Tensor, num_steps: int, report: Callable[[], object] = lambda: None
) -> Tensor:
    """The weights after steps of Adam on U."""
    weights = position.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=DESCENT_LR)
    for _ in range(num_steps):
        weights.grad = potential(weights.detach())[1]
        optimizer.step()
        report()
    return weights.detach()


def tune_mclmc(
    potential: Potential,
    point: PhasePoint,
    config: ReferenceConfig,
    generator: torch.Generator,
    report: Callable[[], object] = lambda: None,
) -> tuple[PhasePoint, float, float]:
    """Tune the step size to the energy variance, and the decoherence length to sqrt(sum of variances of the weights).

    Returns:
        The point after tuning, the step size, and the decoherence length.

    Raises:
        RuntimeError: No step has a finite energy.
    """
    num_dims, length = len(point.position), math.sqrt(len(point.position))
    tuner = StepSizeTuner(min(INITIAL_STEP_SIZE * length, length), config.energy_variance)
    scale_start = int(SCALE_ESTIMATE_START * config.num_tuning_steps)
    variance, log_step_sizes, num_finite = RunningVariance(), list[float](), 0
    for step in range(config.num_tuning_steps):
        moved, energy_error = mclmc_step(point, potential, tuner.step_size, length, generator)
        tuner = tuner.update(energy_error, num_dims)
        if math.isfinite(energy_error):
            point, num_finite = moved, num_finite + 1
        else:
            point = start_chain(point.position, potential, generator)
        if step >= scale_start:
            variance.update(point.position)
            log_step_sizes.append(math.log(tuner.step_size))
        if step == (scale_start + config.num_tuning_steps) // 2 and variance.total > 0:
            length = math.sqrt(variance.sum_of_variances)  # the rest of the tuning has the length of the sampling
        report()
    if not num_finite:
        raise RuntimeError(NOT_FINITE_MESSAGE)
    if variance.total > 0:
        length = math.sqrt(variance.sum_of_variances)
    return point, min(math.exp(fmean(log_step_sizes)), tuner.largest), length


def _run_mclmc(
    potential: Potential,
    position: Tensor,
    config: ReferenceConfig,
    generator: torch.Generator,
    report: Callable[[], object],
) -> Chain:
    point, step_size, length = tune_mclmc(
        potential, start_chain(position, potential, generator), config, generator, report
    )
    positions, potentials, squares = list[Tensor](), list[float](), list[float]()
    for step in range(config.num_steps):
        moved, energy_error = mclmc_step(point, potential, step_size, length, generator)
        if math.isfinite(energy_error):
            point = moved
            squares.append(energy_error**2)
        else:
            point = start_chain(point.position, potential, generator)
        potentials.append(point.potential)
        if config.is_draw(step):
            positions.append(point.position)
        report()
    return Chain(
        torch.stack(positions),
        potentials,
        step_size,
        decoherence_length=length,
        energy_variance=sum(squares) / max(1, len(squares)) / len(position),
        num_divergent=config.num_steps - len(squares),
    )


def _count_tuning_trajectories(config: ReferenceConfig) -> int:
    return max(1, config.num_tuning_steps // config.num_leapfrog_steps)


def _run_hmc(
    potential: Potential,
    position: Tensor,
    config: ReferenceConfig,
    generator: torch.Generator,
    report: Callable[[], object],
) -> Chain:
    point = HMCPoint(position, *potential(position))
    if not math.isfinite(point.potential):
        raise RuntimeError(NOT_FINITE_MESSAGE)
    tuner = DualAveraging.start(INITIAL_STEP_SIZE, config.target_acceptance)
    for _ in range(_count_tuning_trajectories(config)):
        point, acceptance = hmc_step(point, potential, tuner.step_size, _draw_num_steps(config, generator), generator)
        tuner = tuner.update(acceptance)
        report()
    positions, potentials, acceptances = list[Tensor](), list[float](), list[float]()
    for index in range(config.num_positions):
        num_steps = _draw_num_steps(config, generator)
        point, acceptance = hmc_step(point, potential, tuner.final_step_size, num_steps, generator)
        acceptances.append(acceptance)
        potentials.append(point.potential)
        if config.is_draw(index):
            positions.append(point.position)
        report()
    return Chain(
        torch.stack(positions),
        potentials,
        tuner.final_step_size,
        acceptance=sum(acceptances) / len(acceptances),
        num_divergent=sum(acceptance == 0 for acceptance in acceptances),
    )


def _draw_num_steps(config: ReferenceConfig, generator: torch.Generator) -> int:
    """Steps of a trajectory, from half to three halves of the given number, so that no direction is periodic."""
    low, high = math.ceil(config.num_leapfrog_steps / 2), math.floor(1.5 * config.num_leapfrog_steps)
    return int(torch.randint(low, high + 1, (), generator=generator))
