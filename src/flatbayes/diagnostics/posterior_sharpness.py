"""Sharpness of a posterior: measures of the trained network and of networks drawn from the posterior.

A posterior in a region of high, constant loss has small gaps L(w + e) - L(w) too. Therefore the loss of each network,
and with it E_q[L], is always part of the result.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor, nn

from flatbayes.core.console import PlainConsole
from flatbayes.core.devices import move_tensor
from flatbayes.core.display import format_entries, format_html_table, make_data_frame
from flatbayes.core.input_trees import ModelInputs, cast_floating, count_examples, split_examples
from flatbayes.core.names import format_count
from flatbayes.data.checks import check_finite
from flatbayes.diagnostics.hessian import compute_curvature
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import SharpnessConfig, mean_and_standard_error, measure_sharpness
from flatbayes.plotting.sharpness import plot_measures
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.inputs import check_finite_inputs, fill_missing_features, to_inputs
from flatbayes.prediction.labelled import infer_task, make_labelled_tensors, select_labelled

if TYPE_CHECKING:  # optional packages
    import pandas as pd
    from matplotlib.axes import Axes

SHARPNESS_MEASURES = {
    "loss": "mean negative log likelihood at the weights, L(w); over draws this is E_q[L]",
    "gradient_norm": "norm of the gradient of L at the weights",
    "one_step": "L(w + e) - L(w) at the perturbation of one SAM step",
    "worst": "largest L(w + e) - L(w) found by ascents with ||e|| <= rho, a lower bound of the maximum",
    "average": "mean of L(w + e) - L(w) over random e with ||e|| = rho",
    "adaptive": "largest L(w + e) - L(w) found with ||e / |w||| <= adaptive_rho, a lower bound of the maximum",
    "top_eigenvalue": "largest eigenvalue of the Hessian of L",
    "eigenvalue_ratio": "ratio of the first to the last of the computed eigenvalues",
    "trace": "trace of the Hessian of L, estimated from random probes",
    "hessian_error": "estimated relative error of Hessian-vector products: 0 unless they are central differences",
}
"""Definition of each measure. Smaller is flatter, except for `loss` and `eigenvalue_ratio`."""

WRAPPED_DRAW_NOTE = (
    "Draws are {} modules around the trained network: its weights are perturbed, and the difference between draw and "
    "trained weights is constant"
)


@dataclass(frozen=True)
class SharpnessRow:
    """One measure of a posterior.

    Attributes:
        measure: Its name in `SHARPNESS_MEASURES`.
        trained: Value at the network at the end of training; the mean over members if there are several.
        mean: Mean over draws.
        sd: Standard deviation over draws; NaN for a single one.
        standard_error: sd / sqrt(draws), the error of the mean over the posterior. It does not include the variation
            between training runs.
    """

    measure: str
    trained: float
    mean: float
    sd: float
    standard_error: float


@dataclass(frozen=True)
class PosteriorSharpness:
    """All measures at all networks.

    Attributes:
        config: Settings of the measures.
        num_examples: Number of examples over which the loss is averaged.
        trained: Measures by name at the network at the end of training, for each member.
        draws: Measures by name at each network drawn.
        notes: Remarks on how the measures were computed.

    Examples:
        >>> settings = SharpnessConfig(ascent_steps=2, num_random_starts=0)
        >>> sharpness = measure_posterior_sharpness(fitted, inputs, labels, settings, num_draws=1)
        >>> len(sharpness.trained), len(sharpness.draws)
        (1, 1)
        >>> axes = sharpness.plot()
    """

    config: SharpnessConfig
    num_examples: int
    trained: tuple[dict[str, float], ...]
    draws: tuple[dict[str, float], ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[SharpnessRow]:
        """One row for each measure: trained network, and mean, standard deviation and standard error over draws."""
        rows = []
        for name in self.trained[0]:
            over_draws = [measures[name] for measures in self.draws]
            mean, error = mean_and_standard_error(over_draws)
            sd = error * math.sqrt(len(over_draws))
            trained, _ = mean_and_standard_error([measures[name] for measures in self.trained])
            rows.append(SharpnessRow(name, trained, mean, sd, error))
        return rows

    def __repr__(self) -> str:
        size = f"{format_count(len(self.rows), 'measure')} at {format_count(len(self.draws), 'draw')}"
        return f"<PosteriorSharpness: {size}, {format_count(self.num_examples, 'example')}>"

    def _repr_html_(self) -> str:
        rows = [(row.measure, f"{row.trained:.4g}", f"{row.mean:.4g}", f"{row.sd:.2g}") for row in self.rows]
        header = ("measure", "trained network", f"mean of {format_count(len(self.draws), 'draw')}", "sd over draws")
        return format_html_table(repr(self), header, rows, self.notes)

    def summary(self) -> str:
        """Every measure at the trained network and over draws, with its definition, as text."""
        entries = {
            row.measure: f"trained {row.trained:.4g}, draws {row.mean:.4g} ± {row.sd:.2g}  "
            f"{SHARPNESS_MEASURES.get(row.measure, '')}".rstrip()
            for row in self.rows
        }
        return "\n".join([format_entries(repr(self), entries), *self.notes])

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each measure.

        Raises:
            ImportError: pandas is not installed.
        """
        return make_data_frame([asdict(row) for row in self.rows])

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw every measure at the trained network and at each draw, on a logarithmic axis.

        Args:
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot_measures(
            self.trained, self.draws, f"Sharpness on {format_count(self.num_examples, 'example')}", ax
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, including the values at every network."""
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
    inputs: Any,
    targets: Any = None,
    sharpness_config: SharpnessConfig = SharpnessConfig(),
    num_draws: int = 10,
    *,
    batch_size: int = 256,
    seed: int = 0,
    hessian: bool = False,
    show_progress: bool = False,
) -> PosteriorSharpness:
    """Measure the trained network of every member, and networks drawn from the posterior.

    The trained network has the weights and running statistics at the end of training: the means of a variational
    posterior, the last iterate of SWAG or of a sampler. A draw is measured in the state in which it predicts: with
    its own running statistics, and with constant dropout masks.

    Args:
        fitted: The posterior. Its networks are restored; the BatchNorm statistics of new draws are cached in it, as
            in predictions.
        inputs: Examples in the form of the training data. Without `targets`, a split or a pair `(inputs, targets)`.
        targets: Targets of the examples, in a form that `evaluate` takes.
        sharpness_config: Radii and computational effort.
        num_draws: Networks to draw, as in `FittedPosterior.predict`.
        batch_size: Examples per forward pass; it does not change the loss, the mean over all examples.
        seed: Seed of the draws.
        hessian: Also compute eigenvalues and trace of the Hessian, which takes many more passes.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: There are no examples, the loss is not finite at some network, or a draw has no trainable weights.
        ImportError: `hessian` needs scipy, and it is not installed.

    Examples:
        >>> settings = SharpnessConfig(ascent_steps=2, num_random_starts=0)
        >>> sharpness = measure_posterior_sharpness(fitted, inputs, labels, settings, num_draws=1)
        >>> sorted(sharpness.draws[0])
        ['adaptive', 'average', 'gradient_norm', 'loss', 'one_step', 'worst']
    """
    examples = prepare_batches(fitted, inputs, targets, batch_size)
    sample_ids = fitted.sample_ids(num_draws, seed)
    notes: dict[str, None] = {}

    def measure_network(network: nn.Module, keep_mode: bool) -> dict[str, float]:
        surface = LossSurface(network, fitted.likelihood.loss, examples, keep_mode=keep_mode)
        measures = asdict(measure_sharpness(surface, sharpness_config))
        del measures["average_error"]  # within one network; the rows give the error over draws
        if hessian:
            measures |= _measure_curvature(surface, sharpness_config, notes)
        return measures

    trained, draws = [], []
    console = PlainConsole(stderr=True)
    total = len(fitted.states) + len(sample_ids)
    for k in track(range(total), "measuring networks", console=console, transient=True, disable=not show_progress):
        if k < len(fitted.states):
            trained.append(measure_network(fitted.states[k].model, keep_mode=False))
            continue
        sample_id = sample_ids[k - len(fitted.states)]
        with fitted.sampled_network(sample_id) as network:
            if network is not fitted.states[sample_id[1]].model:
                notes[WRAPPED_DRAW_NOTE.format(type(network).__name__)] = None
            draws.append(measure_network(network, keep_mode=True))
    num_examples = sum(len(targets) for _, targets in examples)
    return PosteriorSharpness(sharpness_config, num_examples, tuple(trained), tuple(draws), tuple(notes))


def compare_sharpness(
    fitted_posteriors: Mapping[str, FittedPosterior],
    inputs: Any,
    targets: Any = None,
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
        inputs: Examples in the form of the training data. Without `targets`, a split or a pair `(inputs, targets)`.
        targets: Targets of the examples, in a form that `evaluate` takes.
        sharpness_config: Radii and computational effort.
        num_draws: Networks to draw from each posterior.
        batch_size: Examples per forward pass.
        seed: Seed of the draws.
        hessian: Also compute eigenvalues and trace of the Hessian.
        show_progress: Show a progress bar on standard error.

    Raises:
        ValueError: No posterior is given, or one of them cannot be measured; the message says which.

    Examples:
        >>> plain = fit(MLP, data, SWAG(rank=2), Plain(), config)
        >>> settings = SharpnessConfig(ascent_steps=2, num_random_starts=0)
        >>> posteriors = {"flat": fitted, "plain": plain}
        >>> sharpness = compare_sharpness(posteriors, inputs, labels, settings, num_draws=1)
        >>> sorted(sharpness), len(sharpness["flat"].draws)
        (['flat', 'plain'], 1)
    """
    if not fitted_posteriors:
        raise ValueError("compare_sharpness needs at least one posterior, got none.")
    sharpness = {}
    for name, fitted in fitted_posteriors.items():
        try:
            sharpness[name] = measure_posterior_sharpness(
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
    return sharpness


def prepare_batches(
    fitted: FittedPosterior, inputs: Any, targets: Any = None, batch_size: int = 256
) -> list[tuple[ModelInputs, Tensor]]:
    """Batches for the networks of a posterior: transformed inputs, in their precision and on their device.

    Without `targets`, inputs are a split or a pair `(inputs, targets)`.

    Raises:
        ValueError: There are no examples, not as many inputs as targets, or some are not finite.
        TypeError: There are no targets, or the examples are a loader.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    inputs, targets = make_labelled_tensors(fitted, inputs, targets)
    names = fitted.info.get("feature_names", ())
    examples = to_inputs(inputs, fitted.input_structure)
    num_examples = count_examples(examples)
    if num_examples != len(targets) or not num_examples:
        raise ValueError(
            "Sharpness needs at least one example, and one target for each, got "
            f"{format_count(num_examples, 'input')} and {format_count(len(targets), 'target')}."
        )
    check_finite_inputs([examples], 0, names)
    examples = fill_missing_features(examples, names, fitted.transform)
    if targets.is_floating_point() and infer_task(fitted.likelihood) != "multi_label":
        check_finite(targets.reshape(num_examples, -1), "targets", fitted.info.get("target_names", ()))
    examples, targets = select_labelled(fitted.likelihood, examples, fitted.likelihood.prepare_targets(targets))
    if not len(targets):
        raise ValueError("Sharpness needs at least one labelled example, and no label is known.")
    device_targets = move_tensor(targets, fitted.device)
    if targets.dtype != torch.float64:
        device_targets = cast_floating(device_targets, fitted.dtype)
    batches = zip(split_examples(examples, batch_size), device_targets.split(batch_size), strict=True)
    return [(fitted.preprocess(x), y) for x, y in batches]


def _measure_curvature(
    surface: LossSurface, sharpness_config: SharpnessConfig, notes: dict[str, None]
) -> dict[str, float]:
    curvature = compute_curvature(
        surface, sharpness_config.num_eigenvalues, sharpness_config.num_trace_probes, sharpness_config.seed
    )
    notes[f"Hessian by {curvature.method}"] = None
    first, last = curvature.eigenvalues[0], curvature.eigenvalues[-1]
    ratio = first / last if last else math.nan
    return {
        "top_eigenvalue": first,
        "eigenvalue_ratio": ratio,
        "trace": curvature.trace,
        "hessian_error": curvature.product_error,
    }
