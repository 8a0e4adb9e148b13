"""Sharpness of a posterior: that of the trained network, and that of the networks drawn from it.

The average of L(w + e) - L(w) over draws alone says little: a posterior that has wandered off to where the loss is
high and level is flat too. So the loss of each network, and with it E_q[L], always stands beside.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from flatbayes.diagnostics.hessian import compute_curvature
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import SharpnessConfig, mean_and_standard_error, measure_sharpness
from flatbayes.prediction import FittedPosterior

SHARPNESS_MEASURES = {
    "loss": "mean negative log likelihood at the weights, L(w); over draws this is E_q[L]",
    "gradient_norm": "norm of the gradient of L at the weights",
    "one_step": "L(w + e) - L(w) at the point that one step of SAM asks at",
    "worst": "largest L(w + e) - L(w) found by ascents with ||e|| <= rho, a lower bound of the maximum",
    "average": "mean of L(w + e) - L(w) over random e with ||e|| = rho",
    "adaptive": "largest L(w + e) - L(w) found with ||e / |w||| <= adaptive_rho, a lower bound of the maximum",
    "top_eigenvalue": "largest eigenvalue of the Hessian of L",
    "eigenvalue_ratio": "largest over smallest of the eigenvalues that were found",
    "trace": "trace of the Hessian of L, estimated from random probes",
}
"""What each measure is. Less is flatter, but for `loss`, and `eigenvalue_ratio`, which has no better side."""

WRAPPED_DRAW_NOTE = (
    "Draws are {} modules around the trained network: its weights are displaced, and how the draw departs from them "
    "is held"
)


@dataclass(frozen=True)
class SharpnessRow:
    """One measure of a posterior.

    Attributes:
        measure: Its name in `SHARPNESS_MEASURES`.
        trained: Its value at the network that training ended with; the mean over runs, where there are several.
        mean: Its mean over draws.
        sd: Its standard deviation over draws; NaN for a single one.
        standard_error: sd / sqrt(draws): how well the mean over the posterior is known. It does not include what
            another training run would change.
    """

    measure: str
    trained: float
    mean: float
    sd: float
    standard_error: float


@dataclass(frozen=True)
class PosteriorSharpness:
    """Every measure at every network.

    Attributes:
        config: How they were measured.
        num_examples: Examples that the loss was the mean over.
        trained: By name, at the network that each run's training ended with.
        draws: By name, at each network drawn.
        notes: What a reader of the numbers should know.
    """

    config: SharpnessConfig
    num_examples: int
    trained: tuple[dict[str, float], ...]
    draws: tuple[dict[str, float], ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[SharpnessRow]:
        """A row for each measure: the trained network, and mean, spread and standard error over draws."""
        rows = []
        for name in self.trained[0]:
            over_draws = [found[name] for found in self.draws]
            mean, error = mean_and_standard_error(over_draws)
            sd = error * math.sqrt(len(over_draws))
            trained, _ = mean_and_standard_error([found[name] for found in self.trained])
            rows.append(SharpnessRow(name, trained, mean, sd, error))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the value at every network."""
        return {
            "config": asdict(self.config),
            "num_examples": self.num_examples,
            "num_draws": len(self.draws),
            "rows": [asdict(row) for row in self.rows],
            "trained": list(self.trained),
            "draws": list(self.draws),
            "notes": list(self.notes),
        }


def measure_posterior_sharpness(
    fitted: FittedPosterior,
    inputs: Tensor,
    targets: Tensor,
    sharpness_config: SharpnessConfig = SharpnessConfig(),
    num_draws: int = 10,
    *,
    batch_size: int = 256,
    seed: int = 0,
    hessian: bool = False,
    show_progress: bool = False,
) -> PosteriorSharpness:
    """Measure the trained network of every run, and networks drawn from the posterior.

    The trained network is the state's model with the weights, and running statistics, that training ended with: the
    means of a variational posterior, the last iterate of SWAG or of a sampler. A draw is measured as it predicts:
    with its own running statistics, and with its dropout masks held.

    Args:
        fitted: The posterior. Its networks come out as they went in; running statistics of new draws are cached in
            it, as predictions do.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        sharpness_config: Radii and effort.
        num_draws: Networks to draw, as in `FittedPosterior.predict`.
        batch_size: Examples a pass sees at a time; the loss is the mean over all of them whatever it is.
        seed: Decides which networks are drawn.
        hessian: Also find eigenvalues and trace of the Hessian, which takes many more passes.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: There are no examples, the loss is not finite at some network, or a draw has no weights of its own
            to displace.
        ImportError: `hessian` needs scipy, and it is not installed.
    """
    examples = prepare_batches(fitted, inputs, targets, batch_size)
    keys = fitted.sample_ids(num_draws, seed)
    notes: dict[str, None] = {}

    def measure_network(network: nn.Module, keep_mode: bool) -> dict[str, float]:
        surface = LossSurface(network, fitted.likelihood.loss, examples, keep_mode=keep_mode)
        found = asdict(measure_sharpness(surface, sharpness_config))
        del found["average_error"]  # of this one network; what counts is the spread over draws
        if hessian:
            found |= _measure_curvature(surface, sharpness_config, notes)
        return found

    trained, draws = [], []
    console = Console(stderr=True)
    total = len(fitted.states) + len(keys)
    for k in track(range(total), "measuring networks", console=console, transient=True, disable=not show_progress):
        if k < len(fitted.states):
            trained.append(measure_network(fitted.states[k].model, keep_mode=False))
            continue
        key = keys[k - len(fitted.states)]
        with fitted.sampled_network(key) as network:
            if network is not fitted.states[key[1]].model:
                notes[WRAPPED_DRAW_NOTE.format(type(network).__name__)] = None
            draws.append(measure_network(network, keep_mode=True))
    return PosteriorSharpness(sharpness_config, len(targets), tuple(trained), tuple(draws), tuple(notes))


def compare_sharpness(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Tensor,
    targets: Tensor,
    sharpness_config: SharpnessConfig = SharpnessConfig(),
    num_draws: int = 10,
    *,
    batch_size: int = 256,
    seed: int = 0,
    hessian: bool = False,
    show_progress: bool = False,
) -> dict[str, PosteriorSharpness]:
    """Measure several posteriors with the same radii, on the same examples, in the same random directions.

    Args:
        fitted_posteriors: The posteriors by name.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        sharpness_config: Radii and effort.
        num_draws: Networks to draw from each.
        batch_size: Examples a pass sees at a time.
        seed: Decides which networks are drawn.
        hessian: Also find eigenvalues and trace of the Hessian.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: There is nothing to compare, or one of them cannot be measured; the message says which.
    """
    if not fitted_posteriors:
        raise ValueError("There is nothing to compare: no posterior was given.")
    found = {}
    for name, fitted in fitted_posteriors.items():
        try:
            found[name] = measure_posterior_sharpness(
                fitted,
                inputs,
                targets,
                sharpness_config,
                num_draws,
                batch_size=batch_size,
                seed=seed,
                hessian=hessian,
                show_progress=show_progress,
            )
        except ValueError as error:
            raise ValueError(f"{name} could not be measured. {error}") from error
    return found


def prepare_batches(
    fitted: FittedPosterior, inputs: Tensor, targets: Tensor, batch_size: int = 256
) -> list[tuple[Tensor, Tensor]]:
    """Batches as the posterior's networks take them: transformed, in their precision and on their device.

    Args:
        fitted: The posterior.
        inputs: Examples, as the training data had them.
        targets: Their targets.
        batch_size: Examples in a batch.

    Raises:
        ValueError: There are no examples, or not as many inputs as targets.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"Sharpness is measured on at least one example with its target, got {len(inputs)} inputs and "
            f"{len(targets)} targets."
        )
    ready = targets.to(fitted.device, fitted.dtype if targets.is_floating_point() else targets.dtype)
    batches = zip(inputs.split(batch_size), ready.split(batch_size), strict=True)
    return [(fitted.preprocess(x), y) for x, y in batches]


def _measure_curvature(
    surface: LossSurface, sharpness_config: SharpnessConfig, notes: dict[str, None]
) -> dict[str, float]:
    found = compute_curvature(
        surface, sharpness_config.num_eigenvalues, sharpness_config.num_trace_probes, sharpness_config.seed
    )
    notes[f"Hessian by {found.method}"] = None
    first, last = found.eigenvalues[0], found.eigenvalues[-1]
    ratio = first / last if last else math.nan
    return {"top_eigenvalue": first, "eigenvalue_ratio": ratio, "trace": found.trace}
