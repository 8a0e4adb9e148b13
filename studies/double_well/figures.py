"""Figures, table and summary of the double-well study, from the files that the study wrote.

The exact densities are computed again from the settings; draws and fits are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from flatbayes.core.files import atomic_write, read_json, write_text
from flatbayes.plotting import theme
from flatbayes.reporting import svg
from flatbayes.theory import GridPosterior, gibbs_posterior, grid_points
from studies.double_well.loss import make_sharp_and_flat_wells
from studies.double_well.study import DRAWS_FILE, THEORY_FILE, compute_cell_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

WIDTH_PX, HEIGHT_1D_PX, HEIGHT_2D_PX = 860.0, 540.0, 640.0
DPI = 200
MAX_SHOWN_DRAWS = 250
TARGET_STYLES = {
    "gibbs": ("Gibbs posterior", theme.PLAIN),
    "sharpness_aware_posterior": ("sharpness-aware posterior", theme.FLAT),
}
SAMPLER_MARKERS = {"SGLD": "o", "SGHMC": "x"}
HALF_WIDTH = 2.9
"""Half the width of the interval shown."""


def draw_wells(folder: Path | str) -> list[Path]:
    """Draw `wells-1d` and `wells-2d`, as SVG and as PNG, from the files of the study.

    Raises:
        FileNotFoundError: The folder has no theory.json or no draws.
        ValueError: A file is damaged.
    """
    folder = Path(folder)
    results = read_json(folder / THEORY_FILE)
    draws = safetensors.torch.load_file(folder / DRAWS_FILE)
    written = []
    for name, height, draw, label in (
        ("wells-1d", HEIGHT_1D_PX, draw_1d, "The two posteriors of a loss with two wells, in one parameter"),
        ("wells-2d", HEIGHT_2D_PX, draw_2d, "The two posteriors of a loss with two wells, in two parameters"),
    ):
        with svg.new_figure(WIDTH_PX, height) as figure:
            draw(figure, results, draws)
            written.append(write_text(folder / f"{name}.svg", svg.to_svg_file(figure, name, label)))
            with atomic_write(folder / f"{name}.png") as path:
                figure.savefig(path, format="png", dpi=DPI, facecolor="#ffffff")
            written.append(folder / f"{name}.png")
    return written


def evaluate_density(results: Mapping[str, Any], num_params: int, target: str, points: Tensor) -> GridPosterior:
    """The exact posterior on other grid points than those of the study."""
    config, wells = results["config"], make_sharp_and_flat_wells(num_params)
    values = wells.worst_loss(points, config["rho"] if target == "sharpness_aware_posterior" else 0.0)
    log_prior = -points.square().sum(-1) / (2 * config["prior_std"] ** 2)
    return gibbs_posterior(values, log_prior, config["inverse_temperature"], compute_cell_volume(points))


def draw_1d(figure: "Figure", results: Mapping[str, Any], draws: Mapping[str, Tensor]) -> None:
    """Loss of each posterior above; exact density, draws and best Gaussian below."""
    points = grid_points(1, max(4.0, 5 * results["config"]["prior_std"]), 1000)
    axes = figure.subplots(
        2,
        2,
        sharex="col",
        sharey="row",
        gridspec_kw={
            "height_ratios": (1, 1.9),
            "left": 0.075,
            "right": 0.985,
            "top": 0.93,
            "bottom": 0.145,
            "wspace": 0.07,
            "hspace": 0.1,
        },
    )
    for column, target in enumerate(TARGET_STYLES):
        draw_loss(axes[0, column], results, points, target)
        draw_density(axes[1, column], results, draws, points, target)
        for panel in axes[:, column]:
            theme.style_axes(panel)
            panel.set_xlim(-HALF_WIDTH, HALF_WIDTH)
        axes[1, column].set_xlabel("weight w")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("density")
    axes[1, 0].set_ylim(0, axes[1, 0].get_ylim()[1])
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, bbox_to_anchor=(0.53, 0.0))


def draw_loss(axes: "Axes", results: Mapping[str, Any], points: Tensor, target: str) -> None:
    """The loss, and for the sharpness-aware posterior the worst loss above it."""
    title, colour = TARGET_STYLES[target]
    wells, rho, at = make_sharp_and_flat_wells(1), results["config"]["rho"], points[:, 0]
    axes.set_title(title, loc="left", pad=8, fontsize=13, fontweight="bold", color=colour)
    if target == "gibbs":
        axes.plot(at, wells.loss(points), color=colour)
        for well, name in enumerate(("sharp, deep", "flat, shallow")):
            bottom = float(wells.loss(torch.tensor(wells.centres[well])))
            where = (wells.centres[well][0], bottom)
            axes.annotate(name, where, (0, -5), textcoords="offset points", ha="center", va="top", fontsize=10)
        axes.text(-HALF_WIDTH + 0.08, 0.93, "L(w)", va="top", color=colour)
        axes.set_ylim(-0.12, 1.08)
    else:
        axes.plot(at, wells.loss(points), color=theme.INK, alpha=0.35, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.fill_between(
            at, wells.loss(points), wells.worst_loss(points, rho), color=colour, alpha=0.13, linewidth=0
        )
        axes.plot(at, wells.worst_loss(points, rho), color=colour)
        axes.text(-HALF_WIDTH + 0.08, 0.1, f"worst loss within ρ = {rho:g}", va="center", color=colour)
        axes.text(1.25, 0.26, "L(w)", va="center", ha="center", alpha=0.6, fontsize=10)


def draw_density(
    axes: "Axes", results: Mapping[str, Any], draws: Mapping[str, Tensor], points: Tensor, target: str
) -> None:
    """Exact density as an area, histograms of draws as markers, the best Gaussian as a line."""
    colour, at = TARGET_STYLES[target][1], points[:, 0]
    exact = evaluate_density(results, 1, target, points).log_density.exp()
    axes.fill_between(at, exact, color=colour, alpha=0.3, linewidth=0, label="exact", zorder=2)
    axes.plot(at, exact, color=colour, linewidth=1.2, zorder=3)
    edges = torch.linspace(-HALF_WIDTH, HALF_WIDTH, 117, dtype=torch.float64)
    middle, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
    for name, marker in SAMPLER_MARKERS.items():
        chains = draws[f"1/{target}/{name}"]
        height = torch.histogram(chains.flatten(), edges).hist / (chains.numel() * width)
        visible = height > 0.005
        style: dict[str, Any] = {"markerfacecolor": "none"} if marker == "o" else {}
        style |= {"color": theme.INK, "markersize": 3.2, "markeredgewidth": 0.8, "zorder": 4, "label": name}
        axes.plot(middle[visible], height[visible], marker, **style)
    mean, std = draws[f"1/{target}/SGVB"][:, 0].tolist()
    gaussian = (-((at - mean) / std).square() / 2).exp() / (std * (2 * torch.pi) ** 0.5)
    axes.plot(at, gaussian.tolist(), color=theme.INK, linewidth=1.4, linestyle=(0, (5, 2)), label="SGVB", zorder=3.5)
    summary, wells = results["targets"]["1"]["exact"][target], make_sharp_and_flat_wells(1)
    for well, name in enumerate(("sharp", "flat")):
        near = wells.is_inside_well(points, well)
        peak = (float(at[near][exact[near].argmax()]), float(exact[near].max()))
        percentage = f"{summary[f'mass_in_{name}_well']:.0%}"
        axes.annotate(
            percentage,
            peak,
            (14, 6),
            textcoords="offset points",
            fontsize=13,
            fontweight="bold",
            color=colour,
            zorder=5,
        )


def draw_2d(figure: "Figure", results: Mapping[str, Any], draws: Mapping[str, Tensor]) -> None:
    """Exact densities and best Gaussians above; draws over contours of the exact densities below."""
    points = grid_points(2, max(4.0, 5 * results["config"]["prior_std"]), 400)
    axes = figure.subplots(
        2,
        2,
        sharex=True,
        sharey=True,
        gridspec_kw={"left": 0.07, "right": 0.985, "top": 0.94, "bottom": 0.085, "wspace": 0.05, "hspace": 0.16},
    )
    peak = max(float(evaluate_density(results, 2, target, points).log_density.max()) for target in TARGET_STYLES)
    for column, (target, (title, colour)) in enumerate(TARGET_STYLES.items()):
        exact = evaluate_density(results, 2, target, points)
        draw_exact(axes[0, column], results, points, exact, peak, target)
        draw_gaussian(axes[0, column], draws[f"2/{target}/SGVB"])
        draw_samples(axes[1, column], draws, points, exact, target)
        axes[0, column].set_title(title, loc="left", pad=8, fontsize=13, fontweight="bold", color=colour)
        axes[1, column].set_xlabel("first weight")
        for panel in axes[:, column]:
            theme.style_axes(panel)
            panel.grid(False)
            panel.set(xlim=(-3.1, 3.7), ylim=(-2.3, 2.3), aspect="equal")
            draw_outlines(panel)
    for row in range(2):
        axes[row, 0].set_ylabel("second weight")
        axes[row, 1].legend(loc="upper right", frameon=False, fontsize=10, handletextpad=0.4, borderaxespad=0.1)


def draw_exact(
    axes: "Axes", results: Mapping[str, Any], points: Tensor, exact: GridPosterior, peak: float, target: str
) -> None:
    """Filled contours of the exact density, with the same levels in both panels, and the mass of each well."""
    from matplotlib.colors import LinearSegmentedColormap

    colour = TARGET_STYLES[target][1]
    shades = LinearSegmentedColormap.from_list(target, ["#ffffff", colour])
    top = torch.tensor(peak).exp()
    levels = top * torch.tensor([0.004, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.6, 1.01])
    colours = [shades((k + 1) / len(levels)) for k in range(len(levels) - 1)]
    x, y = points.unbind(-1)
    axes.contourf(x, y, exact.log_density.exp(), levels=levels.tolist(), colors=colours)
    summary, wells = results["targets"]["2"]["exact"][target], make_sharp_and_flat_wells(2)
    for well, name in enumerate(("sharp", "flat")):
        centre, radius = wells.centres[well], wells.radii[well]
        percentage = f"{name} {summary[f'mass_in_{name}_well']:.0%}"
        axes.annotate(
            percentage,
            (centre[0], -radius - 0.08),
            ha="center",
            va="top",
            fontsize=12,
            fontweight="bold",
            color=colour,
        )


def draw_gaussian(axes: "Axes", fit: Tensor) -> None:
    """Contours at one and two standard deviations of a Gaussian with independent coordinates."""
    angle = torch.linspace(0, 2 * torch.pi, 181, dtype=torch.float64)
    (x, y), (wide, high) = fit[0].tolist(), fit[1].tolist()
    for times in (1, 2):
        label = "SGVB, 1 and 2 sd" if times == 1 else None
        axes.plot(
            x + times * wide * angle.cos(),
            y + times * high * angle.sin(),
            color=theme.INK,
            linewidth=1.3,
            linestyle=(0, (5, 2)),
            label=label,
        )


def draw_samples(
    axes: "Axes", draws: Mapping[str, Tensor], points: Tensor, exact: GridPosterior, target: str
) -> None:
    """Last draws of the first chains, over contours that contain 50 % and 90 % of the exact mass."""
    colour = TARGET_STYLES[target][1]
    x, y = points.unbind(-1)
    levels = sorted(highest_density_levels(exact, (0.5, 0.9)))
    for level in levels:
        axes.contourf(x, y, exact.log_density.exp(), levels=[level, torch.inf], colors=[colour], alpha=0.16)
    for name, marker in SAMPLER_MARKERS.items():
        first, second = draws[f"2/{target}/{name}"][:MAX_SHOWN_DRAWS, -1].unbind(-1)
        style: dict[str, Any] = (
            {"facecolors": "none", "edgecolors": theme.INK} if marker == "o" else {"color": theme.INK}
        )
        axes.scatter(first, second, s=11, marker=marker, linewidths=0.7, alpha=0.75, label=name, zorder=3, **style)


def highest_density_levels(posterior: GridPosterior, fractions: tuple[float, ...]) -> list[float]:
    """Density levels of the highest-density regions that contain these fractions of the mass."""
    masses = posterior.cell_probabilities.flatten().sort(descending=True).values
    return [float(masses[(masses.cumsum(0) < fraction).sum()]) / posterior.cell_volume for fraction in fractions]


def draw_outlines(axes: "Axes") -> None:
    """Circles around the wells."""
    from matplotlib.patches import Circle

    wells = make_sharp_and_flat_wells(2)
    for centre, radius in zip(wells.centres, wells.radii, strict=True):
        x, y = centre
        axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=theme.INK, linewidth=0.8, alpha=0.5))


def wells_table(results: Mapping[str, Any]) -> "Table":
    """Table of exact posteriors and approximations, for a rich console."""
    from rich.table import Table

    config = results["config"]
    table = Table(
        title=f"Two wells, λ = {config['inverse_temperature']:g}, ρ = {config['rho']:g}",
        caption="error: Kolmogorov distance from the exact distribution (SGVB: KL divergence)",
    )
    for name in ("", "sharp well", "flat well", "loss", "gap", "error"):
        table.add_column(name, justify="right" if name else "left")
    for num_params, dimension in results["targets"].items():
        for target, (title, _) in TARGET_STYLES.items():
            table.add_row(
                f"[bold]{title.removesuffix(' posterior')}, {num_params}-D[/bold]",
                *format_wells_row(dimension["exact"][target], None, None),
            )
            for row in (*dimension["samplers"], *dimension["families"]):
                if row["target"] == target:
                    name = row["posterior"] + ("" if row["flatness"] == "Plain" else " x SAM")
                    table.add_row(f"  {name}", *format_wells_row(row, row.get("distance"), row.get("kl")))
            table.add_section()
    return table


def format_wells_row(row: Mapping[str, Any], distance: float | None, divergence: float | None) -> list[str]:
    """Cells of a row after the name."""
    error = "" if distance is None and divergence is None else f"{divergence if distance is None else distance:.3f}"
    numbers = [f"{row[f'mass_in_{name}_well']:.1%}" for name in ("sharp", "flat")]
    return [*numbers, f"{row['expected_loss']:.3f}", f"{row['mean_sharpness']:.3f}", error]


def describe_wells(results: Mapping[str, Any]) -> str:
    """Summary of the results in sentences."""
    sentences = []
    for num_params, dimension in results["targets"].items():
        plain, flat = dimension["exact"]["gibbs"], dimension["exact"]["sharpness_aware_posterior"]
        where = "one weight" if num_params == "1" else "two weights"
        sentences.append(
            f"With {where}, the Gibbs posterior has {plain['mass_in_sharp_well']:.0%} of its mass in the sharp deep "
            f"well and the sharpness-aware one {flat['mass_in_sharp_well']:.0%}; the expected gap decreases from "
            f"{plain['mean_sharpness']:.3f} to {flat['mean_sharpness']:.3f}, for an expected loss of "
            f"{flat['expected_loss']:.3f} instead of {plain['expected_loss']:.3f}."
        )
    identity = max(abs(dimension["theorem_c"]["residual"]) for dimension in results["targets"].values())
    largest_distance = max(
        row["distance"] for dimension in results["targets"].values() for row in dimension["samplers"]
    )
    sentences.append(
        f"λ times the decrease of the gap equals Jeffreys' divergence between the two up to {identity:.0e} "
        "(Theorem C). The Kolmogorov distance of the samplers' draws from the exact distribution is at most "
        f"{largest_distance:.3f}."
    )
    if results["config"]["rho"] > make_sharp_and_flat_wells(1).plateau_width + 1e-9:
        sentences.append(
            "The radius exceeds the width of the plateau between the wells, so SAM's ascent step can land in the "
            "other well: part of the distance is the error of this step."
        )
    return " ".join(sentences)
