"""Samplers and variational inference on a double-well loss, compared with the exact posteriors.

In one and two parameters the Gibbs and the sharpness-aware posterior are known to rounding. SGLD, SGHMC and SGVB
approximate both, with plain gradients and with SAM.
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

from flatbayes.core import State
from flatbayes.core.files import atomic_write, write_json
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.posteriors import SGHMC, SGLD, SGVB, Posterior
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.theory import (
    GridPosterior,
    gibbs_posterior,
    grid_kl,
    grid_points,
    normalize_density,
    variational_objective,
)
from studies.double_well.batched_chains import BatchedChains, make_closure, make_row_sam_closure
from studies.double_well.loss import MultiWellLoss, make_sharp_and_flat_wells

THEORY_FILE, DRAWS_FILE = "theory.json", "draws.safetensors"
NUM_DATA = 1000
"""Number of examples; only its ratio to the temperature matters, which is λ."""
PROGRESS_INTERVAL_STEPS = 100
"""Steps between two updates of the progress bar."""


@dataclass(frozen=True)
class ExactPosterior:
    """A posterior on a grid, and its loss.

    Attributes:
        name: "gibbs" or "sharpness_aware_posterior".
        rho: Radius of the ball; 0 for the Gibbs posterior.
        posterior: The density.
        losses: L^ρ at every grid point.
    """

    name: str
    rho: float
    posterior: GridPosterior
    losses: Tensor


@dataclass(frozen=True)
class DoubleWellStudy:
    """Settings of the study: targets, samplers and variational fits.

    Attributes:
        rho: Radius of the ball. Up to 0.3, the width of the plateau between the wells, SAM's single ascent step is
            exact; with a larger radius it can land in the other well.
        inverse_temperature: λ, on the loss, whose plateau is at 1. Above about 8 chains seldom leave a well.
        prior_std: Standard deviation of the Gaussian prior on every parameter.
        seed: Seed of all random numbers.
        num_chains: Chains of each sampler, started from the prior.
        num_snapshots: Draws kept per chain, evenly spaced over the second half of its steps.
        plain_steps: Steps of a SGLD chain without SAM; SGHMC moves further per step and runs half as many.
        sam_steps: Steps of a SGLD chain with SAM, whose posterior has lower barriers.
        sgld_step_size: Step size of SGLD on the negative log posterior, to which its error is proportional.
        sghmc_step_size: Step size of SGHMC; smaller, since momentum adds up about ten steps.
        num_fits: Variational fits, started from the prior; the best one is reported.
        fit_steps: Steps of a variational fit.

    Raises:
        ValueError: A value is out of range.
    """

    rho: float = 0.3
    inverse_temperature: float = 7.0
    prior_std: float = 1.0
    seed: int = 0
    num_chains: int = 400
    num_snapshots: int = 25
    plain_steps: int = 48_000
    sam_steps: int = 20_000
    sgld_step_size: float = 2e-3
    sghmc_step_size: float = 5e-4
    num_fits: int = 64
    fit_steps: int = 3000

    def __post_init__(self) -> None:
        for name in ("rho", "inverse_temperature", "prior_std", "sgld_step_size", "sghmc_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        for name, minimum in (("num_chains", 2), ("num_fits", 2), ("fit_steps", 2), ("num_snapshots", 4)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
        min_steps = 4 * self.num_snapshots
        if min(self.plain_steps, self.sam_steps) < min_steps:
            raise ValueError(
                f"{self.num_snapshots} snapshots of the second half of an SGHMC chain take {min_steps} steps of "
                f"SGLD, got {min(self.plain_steps, self.sam_steps)}."
            )

    @property
    def temperature(self) -> float:
        """The temperature that the posteriors take: number of examples over λ."""
        return NUM_DATA / self.inverse_temperature

    def make_grid(self, num_params: int) -> Tensor:
        """Grid that covers five standard deviations of the prior, with a fine spacing compared with the wells."""
        return grid_points(num_params, max(4.0, 5 * self.prior_std), 4000 if num_params == 1 else 400)

    def exact_posteriors(self, num_params: int) -> tuple[ExactPosterior, ExactPosterior]:
        """The Gibbs and the sharpness-aware posterior."""
        wells, points = make_sharp_and_flat_wells(num_params), self.make_grid(num_params)
        log_prior = -points.square().sum(-1) / (2 * self.prior_std**2)
        targets = []
        for name, rho in (("gibbs", 0.0), ("sharpness_aware_posterior", self.rho)):
            values = wells.worst_loss(points, rho)
            posterior = gibbs_posterior(values, log_prior, self.inverse_temperature, compute_cell_volume(points))
            targets.append(ExactPosterior(name, rho, posterior, values))
        return targets[0], targets[1]

    def run(self, *, show_progress: bool | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Run the study in one and in two parameters.

        Args:
            show_progress: Show a progress bar; by default if standard error is a terminal.

        Returns:
            The numbers, as written to the JSON file, and the draws and fits by name, for the figures.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if show_progress is None else show_progress),
        )
        total = 2 * sum(steps + steps // 2 + self.fit_steps for steps in (self.plain_steps, self.sam_steps))
        numbers: dict[str, Any] = {}
        draws: dict[str, Tensor] = {}
        with bar:
            task = bar.add_task("", total=total)
            for num_params in (1, 2):
                bar.update(task, description=f"{num_params} parameter{'s' * (num_params - 1)}")
                with seeded_rng(spawn_seed(Stream.STUDY, self.seed, num_params), None):
                    numbers[str(num_params)] = self._run_dimension(
                        num_params, draws, lambda steps: bar.advance(task, steps)
                    )
        results = {
            "flatbayes": version("flatbayes"),
            "environment": describe_environment(),
            "config": asdict(self),
            "targets": numbers,
        }
        return results, draws

    def _run_dimension(
        self, num_params: int, draws: dict[str, Tensor], advance_progress: Callable[[int], None]
    ) -> dict[str, Any]:
        wells, points = make_sharp_and_flat_wells(num_params), self.make_grid(num_params)
        plain, flat = targets = self.exact_posteriors(num_params)
        gap = wells.worst_loss(points, self.rho) - wells.loss(points)
        left = self.inverse_temperature * (plain.posterior.expect(gap) - flat.posterior.expect(gap))
        kl_flat_plain, kl_plain_flat = (
            grid_kl(flat.posterior, plain.posterior),
            grid_kl(plain.posterior, flat.posterior),
        )
        jeffreys = kl_flat_plain + kl_plain_flat
        samplers: list[dict[str, Any]] = []
        families: list[dict[str, Any]] = []
        for target in targets:
            label = {"target": target.name, "flatness": f"SAM(rho={self.rho:g})" if target.rho else "Plain"}
            for sampler, steps, step_size in self._make_samplers(self.sam_steps if target.rho else self.plain_steps):
                name = type(sampler).__name__
                chains = self._run_sampler(sampler, wells, target.rho, steps, step_size, advance_progress)
                draws[f"{num_params}/{target.name}/{name}"] = chains
                row = {"posterior": name, **label, "steps": steps, "step_size": step_size}
                samplers.append(row | self._summarize_draws(chains, wells, points, target))
            mean, std = self._run_variational_fits(wells, target.rho, advance_progress)
            best, family = self._select_best_fit(mean, std, points, wells, target)
            draws[f"{num_params}/{target.name}/SGVB"] = torch.stack(best)
            families.append({"posterior": "SGVB", **label} | family)
        return {
            "wells": asdict(wells),
            "exact": {
                target.name: self._summarize_density(target.posterior, wells, points)
                | {"free_energy": -target.posterior.log_evidence}
                for target in targets
            },
            "kl_sharpness_aware_from_gibbs": kl_flat_plain,
            "kl_gibbs_from_sharpness_aware": kl_plain_flat,
            "jeffreys": jeffreys,
            "theorem_c": {"left": left, "right": jeffreys, "residual": left - jeffreys},
            "samplers": samplers,
            "families": families,
        }

    def _make_samplers(self, steps: int) -> tuple[tuple[Posterior, int, float], ...]:
        precision = 1 / self.prior_std**2
        sgld = SGLD(prior_precision=precision, temperature=self.temperature)
        sghmc = SGHMC(prior_precision=precision, temperature=self.temperature)
        return (sgld, steps, self.sgld_step_size), (sghmc, steps // 2, self.sghmc_step_size)

    def _run_sampler(
        self,
        sampler: Posterior,
        wells: MultiWellLoss,
        rho: float,
        steps: int,
        step_size: float,
        advance_progress: Callable[[int], None],
    ) -> Tensor:
        """Draws of shape `chains x snapshots x params`."""
        model, interval = self._sample_prior(self.num_chains, wells), steps // 2 // self.num_snapshots
        snapshots: list[Tensor] = []
        lr = step_size * self.inverse_temperature
        state = sampler.init(model, lambda params: torch.optim.SGD(params, lr=lr), NUM_DATA)
        closure = make_row_sam_closure(make_closure(model, wells.gradient), model, rho)
        for steps_left in reversed(range(steps)):
            sampler.step(state, closure)
            if steps_left % interval == 0 and steps_left < interval * self.num_snapshots:
                snapshots.append(model.weight.detach().clone())
            if steps_left % PROGRESS_INTERVAL_STEPS == 0:
                advance_progress(min(PROGRESS_INTERVAL_STEPS, steps))
        return torch.stack(snapshots, dim=1)

    def _run_variational_fits(
        self, wells: MultiWellLoss, rho: float, advance_progress: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of every fit, of shape `fits x params`."""
        model = self._sample_prior(self.num_fits, wells)
        posterior = SGVB(prior_precision=1 / self.prior_std**2, temperature=self.temperature, initial_std=0.3)
        state: State = posterior.init(model, lambda params: torch.optim.Adam(params, lr=0.05), NUM_DATA)
        closure = make_row_sam_closure(make_closure(model, wells.gradient), model, rho)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(state.optimizer, self.fit_steps)  # type: ignore[arg-type]
        for steps_left in reversed(range(self.fit_steps)):
            posterior.step(state, closure)
            schedule.step()
            if steps_left % PROGRESS_INTERVAL_STEPS == 0:
                advance_progress(min(PROGRESS_INTERVAL_STEPS, self.fit_steps))
        shape = model.weight.shape
        return model.weight.detach().clone(), raw_to_std(state.statistics["raw_scale"]).detach().view(shape)

    def _sample_prior(self, count: int, wells: MultiWellLoss) -> BatchedChains:
        return BatchedChains(self.prior_std * torch.randn(count, wells.num_params, dtype=torch.float64))

    def _select_best_fit(
        self, mean: Tensor, std: Tensor, points: Tensor, wells: MultiWellLoss, target: ExactPosterior
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """The average of all fits that ended in the same region as the best one, and its numbers."""
        cell = compute_cell_volume(points)
        prior = normalize_density(-points.square().sum(-1) / (2 * self.prior_std**2), cell)
        in_wells = torch.stack([wells.is_inside_well(mean, k) for k in range(len(wells.radii))])
        candidates = []
        for in_region in (*in_wells, ~in_wells.any(0)):
            if in_region.any():
                centre, width = mean[in_region].mean(0), std[in_region].mean(0)
                q = normalize_density(-((points - centre) / width).square().sum(-1) / 2, cell)
                value = variational_objective(q, target.losses, prior, self.inverse_temperature)
                candidates.append((value, centre, width, q))
        value, centre, width, q = min(candidates, key=lambda candidate: candidate[0])
        return (centre, width), {
            "mean": centre.tolist(),
            "std": width.tolist(),
            "objective": value,
            "kl": grid_kl(q, target.posterior),
            "fits_in_sharp_and_flat_well": in_wells.sum(1).tolist(),
            **self._summarize_density(q, wells, points),
        }

    def _summarize_density(self, q: GridPosterior, wells: MultiWellLoss, points: Tensor) -> dict[str, float]:
        loss = wells.loss(points)
        return {
            "mass_in_sharp_well": q.region_probability(wells.is_inside_well(points, 0)),
            "mass_in_flat_well": q.region_probability(wells.is_inside_well(points, 1)),
            "expected_loss": q.expect(loss),
            "mean_sharpness": q.expect(wells.worst_loss(points, self.rho) - loss),
        }

    def _summarize_draws(
        self, draws: Tensor, wells: MultiWellLoss, points: Tensor, target: ExactPosterior
    ) -> dict[str, Any]:
        """Averages over draws with their standard errors over independent chains, and how well the chains mix."""
        loss = wells.loss(draws)
        values = {
            "mass_in_sharp_well": wells.is_inside_well(draws, 0).double(),
            "mass_in_flat_well": wells.is_inside_well(draws, 1).double(),
            "expected_loss": loss,
            "mean_sharpness": wells.worst_loss(draws, self.rho) - loss,
        }
        summary: dict[str, Any] = {}
        for name, value in values.items():
            chain_means = value.mean(1)
            summary[name] = float(chain_means.mean())
            summary[f"{name}_error"] = float(chain_means.std()) / math.sqrt(len(chain_means))
        summary["distance"] = kolmogorov_distance(draws[..., 0], points, target.posterior)
        summary["r_hat"] = split_r_hat(draws[..., 0])
        summary["effective_sample_size"] = effective_sample_size(draws[..., 0])
        return summary


def compute_cell_volume(points: Tensor) -> float:
    """Length or area of a cell of a regular grid."""
    spacing = float(points.flatten(0, -2)[1, -1] - points.flatten(0, -2)[0, -1])
    return spacing ** points.shape[-1]


def kolmogorov_distance(draws: Tensor, points: Tensor, posterior: GridPosterior) -> float:
    """Kolmogorov's distance sup |F_draws - F| of the first coordinate."""
    probabilities = posterior.cell_probabilities
    marginal = probabilities if probabilities.dim() == 1 else probabilities.sum(1)
    axis = points.flatten(1, -2)[:, 0, 0] if points.dim() == 3 else points[:, 0]
    upper_edges = axis + (axis[1] - axis[0]) / 2
    num_below = torch.searchsorted(draws.flatten().sort().values, upper_edges, right=True)
    return float((num_below.double() / draws.numel() - marginal.cumsum(0)).abs().max())


def save_results(folder: Path, results: dict[str, Any], draws: dict[str, Tensor]) -> Path:
    """Write `theory.json` and `draws.safetensors`; returns the path of the former."""
    with atomic_write(folder / DRAWS_FILE) as path:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in draws.items()}, path)
    write_json(folder / THEORY_FILE, results)
    return folder / THEORY_FILE


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder is free for results.

    Raises:
        ValueError: It holds results and `overwrite` is not set, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another --out.")
    existing = [name for name in (THEORY_FILE, DRAWS_FILE, "config.json", "results.json") if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{folder} already holds a run ({', '.join(existing)}): choose another --out, or --overwrite."
        )
