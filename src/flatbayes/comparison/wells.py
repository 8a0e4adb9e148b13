"""Samplers and variational families on a loss with two wells, beside the exact posteriors.

In one and two parameters the Gibbs and the sharpness-aware posterior are known to rounding. Every method is asked
for both, plainly and with SAM, and so it can be seen what flatness does to a posterior, and how well it is found.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from flatbayes.comparison.chains import Rows, closure_of, sam_by_row
from flatbayes.core import State
from flatbayes.core.environment import environment
from flatbayes.core.files import replacing, write_json
from flatbayes.core.randomness import forked, spawn
from flatbayes.posteriors import SGHMC, SGLD, SGVB, Posterior
from flatbayes.posteriors.variational import std_of_raw
from flatbayes.theory import GridPosterior, Wells, gibbs, grid_points, kl, normalised, sharp_and_flat
from flatbayes.theory import objective as theorem_a

NUMBERS, DRAWS = "theory.json", "draws.safetensors"
NUM_DATA = 1000
"""Only its ratio to the temperature counts, which is λ."""
TICK = 100
"""Steps between two movements of the progress bar."""


@dataclass(frozen=True)
class Exact:
    """A posterior on a grid, and the loss that it belongs to.

    Attributes:
        name: "gibbs" or "sharpness_aware".
        rho: Radius of the ball: 0 for the Gibbs posterior.
        posterior: Its density.
        values: L^ρ at every grid point.
    """

    name: str
    rho: float
    posterior: GridPosterior
    values: Tensor


@dataclass(frozen=True)
class WellsStudy:
    """What is asked of the samplers and families, and how long they may take.

    Attributes:
        rho: Radius of the ball. Up to 0.3, the width of the plateau between the wells, one step of SAM's ascent is
            exact; beyond that it jumps into the other well.
        inverse_temperature: λ, on the loss, whose plateau is at 1. Above about 8 chains seldom leave a well.
        prior_std: Standard deviation of the Gaussian prior on every parameter.
        seed: Decides everything random.
        chains: Chains of each sampler, which start from the prior.
        snapshots: Draws kept of each chain, evenly spread over the second half of its steps.
        plain_steps: Steps of every SGLD chain without SAM; SGHMC, which goes further in one, makes half as many.
        sam_steps: Steps of every SGLD chain with SAM, whose posterior has lower barriers to cross.
        sgld_step_size: Its step size on the negative log posterior, to which its error is proportional.
        sghmc_step_size: That of SGHMC; smaller, since ten steps of momentum add up.
        fits: Variational fits, which start from the prior; the best counts.
        fit_steps: Steps of each.
    """

    rho: float = 0.3
    inverse_temperature: float = 7.0
    prior_std: float = 1.0
    seed: int = 0
    chains: int = 400
    snapshots: int = 25
    plain_steps: int = 48_000
    sam_steps: int = 20_000
    sgld_step_size: float = 2e-3
    sghmc_step_size: float = 5e-4
    fits: int = 64
    fit_steps: int = 3000

    def __post_init__(self) -> None:
        for name in ("rho", "inverse_temperature", "prior_std", "sgld_step_size", "sghmc_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        for name in ("chains", "fits", "fit_steps", "snapshots"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}.")
        if min(self.plain_steps, self.sam_steps) < 4 * self.snapshots:
            raise ValueError(
                f"{self.snapshots} snapshots of the second half of an SGHMC chain take {4 * self.snapshots} steps of "
                f"SGLD, got {min(self.plain_steps, self.sam_steps)}."
            )

    @property
    def temperature(self) -> float:
        """The temperature of the posteriors' own parametrisation."""
        return NUM_DATA / self.inverse_temperature

    def grid(self, num_params: int) -> Tensor:
        """Points that hold all of the prior that counts, half a hundredth of a well apart or less."""
        return grid_points(num_params, max(4.0, 5 * self.prior_std), 4000 if num_params == 1 else 400)

    def exact(self, num_params: int) -> tuple[Exact, Exact]:
        """The Gibbs and the sharpness-aware posterior."""
        wells, points = sharp_and_flat(num_params), self.grid(num_params)
        log_prior = -points.square().sum(-1) / (2 * self.prior_std**2)
        found = []
        for name, rho in (("gibbs", 0.0), ("sharpness_aware", self.rho)):
            values = wells.worst_loss(points, rho)
            posterior = gibbs(values, log_prior, self.inverse_temperature, cell_of(points))
            found.append(Exact(name, rho, posterior, values))
        return found[0], found[1]

    def run(self, *, progress: bool | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Do it all, in one and in two parameters.

        Args:
            progress: Show a progress bar; by default if standard error is a terminal.

        Returns:
            The numbers, as they go into a JSON file, and the draws and fits by name, for a picture.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if progress is None else progress),
        )
        total = 2 * sum(steps + steps // 2 + self.fit_steps for steps in (self.plain_steps, self.sam_steps))
        numbers: dict[str, Any] = {}
        draws: dict[str, Tensor] = {}
        with bar:
            task = bar.add_task("", total=total)
            for num_params in (1, 2):
                bar.update(task, description=f"{num_params} parameter{'s' * (num_params - 1)}")
                with forked(spawn(self.seed, num_params, count=1)[0], None):
                    numbers[str(num_params)] = self._in(num_params, draws, lambda steps: bar.advance(task, steps))
        results = {
            "flatbayes": version("flatbayes"),
            "environment": environment(),
            "config": asdict(self),
            "targets": numbers,
        }
        return results, draws

    def _in(self, num_params: int, draws: dict[str, Tensor], tick: Callable[[int], None]) -> dict[str, Any]:
        wells, points = sharp_and_flat(num_params), self.grid(num_params)
        plain, flat = targets = self.exact(num_params)
        gap = wells.worst_loss(points, self.rho) - wells.loss(points)
        left = self.inverse_temperature * (plain.posterior.expect(gap) - flat.posterior.expect(gap))
        there, back = kl(flat.posterior, plain.posterior), kl(plain.posterior, flat.posterior)
        samplers: list[dict[str, Any]] = []
        families: list[dict[str, Any]] = []
        for target in targets:
            label = {"target": target.name, "flatness": f"SAM(rho={self.rho:g})" if target.rho else "Plain"}
            for sampler, steps, step_size in self._samplers(self.sam_steps if target.rho else self.plain_steps):
                name = type(sampler).__name__
                found = self._sample(sampler, wells, target.rho, steps, step_size, tick)
                draws[f"{num_params}/{target.name}/{name}"] = found
                measured = {"posterior": name, **label, "steps": steps, "step_size": step_size}
                samplers.append(measured | self._measure(found, wells, points, target))
            mean, std = self._fit(wells, target.rho, tick)
            best, family = self._best_fit(mean, std, points, wells, target)
            draws[f"{num_params}/{target.name}/SGVB"] = torch.stack(best)
            families.append({"posterior": "SGVB", **label} | family)
        return {
            "wells": asdict(wells),
            "exact": {
                target.name: self._numbers(target.posterior, wells, points)
                | {"free_energy": -target.posterior.log_evidence}
                for target in targets
            },
            "kl_sharpness_aware_from_gibbs": there,
            "kl_gibbs_from_sharpness_aware": back,
            "jeffreys": there + back,
            "theorem_c": {"left": left, "right": there + back, "residual": left - (there + back)},
            "samplers": samplers,
            "families": families,
        }

    def _samplers(self, steps: int) -> tuple[tuple[Posterior, int, float], ...]:
        precision = 1 / self.prior_std**2
        sgld = SGLD(prior_precision=precision, temperature=self.temperature)
        sghmc = SGHMC(prior_precision=precision, temperature=self.temperature)
        return (sgld, steps, self.sgld_step_size), (sghmc, steps // 2, self.sghmc_step_size)

    def _sample(
        self, sampler: Posterior, wells: Wells, rho: float, steps: int, step_size: float, tick: Callable[[int], None]
    ) -> Tensor:
        """Draws of shape `chains x snapshots x params`."""
        model, every, kept = self._from_prior(self.chains, wells), steps // 2 // self.snapshots, []
        lr = step_size * self.inverse_temperature
        state = sampler.init(model, lambda params: torch.optim.SGD(params, lr=lr), NUM_DATA)
        closure = sam_by_row(closure_of(model, wells.gradient), model, rho)
        for left in reversed(range(steps)):
            sampler.step(state, closure)
            if left % every == 0 and left < every * self.snapshots:
                kept.append(model.weight.detach().clone())
            if left % TICK == 0:
                tick(min(TICK, steps))
        return torch.stack(kept, dim=1)

    def _fit(self, wells: Wells, rho: float, tick: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of every fit, of shape `fits x params`."""
        model = self._from_prior(self.fits, wells)
        posterior = SGVB(prior_precision=1 / self.prior_std**2, temperature=self.temperature, initial_std=0.3)
        state: State = posterior.init(model, lambda params: torch.optim.Adam(params, lr=0.05), NUM_DATA)
        closure = sam_by_row(closure_of(model, wells.gradient), model, rho)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(state.optimizer, self.fit_steps)  # type: ignore[arg-type]
        for left in reversed(range(self.fit_steps)):
            posterior.step(state, closure)
            schedule.step()
            if left % TICK == 0:
                tick(min(TICK, self.fit_steps))
        shape = model.weight.shape
        return model.weight.detach().clone(), std_of_raw(state.statistics["raw_scale"]).detach().view(shape)

    def _from_prior(self, count: int, wells: Wells) -> Rows:
        return Rows(self.prior_std * torch.randn(count, wells.num_params, dtype=torch.float64))

    def _best_fit(
        self, mean: Tensor, std: Tensor, points: Tensor, wells: Wells, target: Exact
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """The average of the fits that ended where the best one did, which has the least noise, and its numbers."""
        cell = cell_of(points)
        prior = normalised(-points.square().sum(-1) / (2 * self.prior_std**2), cell)
        reached = torch.stack([wells.inside(mean, k) for k in range(len(wells.radii))])
        candidates = []
        for here in (*reached, ~reached.any(0)):
            if here.any():
                centre, width = mean[here].mean(0), std[here].mean(0)
                q = normalised(-((points - centre) / width).square().sum(-1) / 2, cell)
                value = theorem_a(q, target.values, prior, self.inverse_temperature)
                candidates.append((value, centre, width, q))
        value, centre, width, q = min(candidates, key=lambda candidate: candidate[0])
        return (centre, width), {
            "mean": centre.tolist(),
            "std": width.tolist(),
            "objective": value,
            "kl": kl(q, target.posterior),
            "fits_in_sharp_and_flat_well": reached.sum(1).tolist(),
            **self._numbers(q, wells, points),
        }

    def _numbers(self, q: GridPosterior, wells: Wells, points: Tensor) -> dict[str, float]:
        loss = wells.loss(points)
        return {
            "mass_in_sharp_well": q.mass(wells.inside(points, 0)),
            "mass_in_flat_well": q.mass(wells.inside(points, 1)),
            "expected_loss": q.expect(loss),
            "expected_gap": q.expect(wells.worst_loss(points, self.rho) - loss),
        }

    def _measure(self, draws: Tensor, wells: Wells, points: Tensor, target: Exact) -> dict[str, Any]:
        """Averages over draws with their standard errors over chains, which are independent of each other."""
        loss = wells.loss(draws)
        values = {
            "mass_in_sharp_well": wells.inside(draws, 0).double(),
            "mass_in_flat_well": wells.inside(draws, 1).double(),
            "expected_loss": loss,
            "expected_gap": wells.worst_loss(draws, self.rho) - loss,
        }
        found: dict[str, Any] = {}
        for name, value in values.items():
            by_chain = value.mean(1)
            found[name] = float(by_chain.mean())
            found[f"{name}_error"] = float(by_chain.std()) / math.sqrt(len(by_chain))
        found["distance"] = distribution_distance(draws[..., 0], points, target.posterior)
        return found


def cell_of(points: Tensor) -> float:
    """Length or area of a cell of a regular grid of points."""
    spacing = float(points.flatten(0, -2)[1, -1] - points.flatten(0, -2)[0, -1])
    return spacing ** points.shape[-1]


def distribution_distance(draws: Tensor, points: Tensor, posterior: GridPosterior) -> float:
    """Kolmogorov's distance, sup |F_draws - F|, of the first coordinate."""
    masses = posterior.masses if posterior.masses.dim() == 1 else posterior.masses.sum(1)
    axis = points.flatten(1, -2)[:, 0, 0] if points.dim() == 3 else points[:, 0]
    edges = axis + (axis[1] - axis[0]) / 2
    below = torch.searchsorted(draws.flatten().sort().values, edges, right=True)
    return float((below.double() / draws.numel() - masses.cumsum(0)).abs().max())


def save(folder: Path, results: dict[str, Any], draws: dict[str, Tensor]) -> Path:
    """Write `theory.json` and `draws.safetensors`; returns the path of the former."""
    with replacing(folder / DRAWS) as path:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in draws.items()}, path)
    write_json(folder / NUMBERS, results)
    return folder / NUMBERS


def claim(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something already.

    Raises:
        ValueError: It does, and `overwrite` is not set; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another --out.")
    held = [name for name in (NUMBERS, DRAWS, "config.json", "results.json") if (folder / name).exists()]
    if held and not overwrite:
        raise ValueError(f"{folder} already holds a run ({', '.join(held)}): choose another --out, or --overwrite.")
